"""What no norm of the batch can do, in a backbone with FPN."""


import pytest
from scripts import load

pytestmark = pytest.mark.slow  # tests/layers has each norm alone


@pytest.fixture(scope='module')
def measure():
    import logging

    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')
    yield load('check_independence').measure
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize('norm', [
    'FRN', 'FRN:learnable_eps=true', 'GN',
])
def test_images_are_alone(measure, norm):
    """Batch mates, the mode, how a batch is cut: all the same."""
    row = measure(norm, depth=18)
    assert row.pop('norm') == norm
    assert all(float(value) < 1e-11 for value in row.values()), row


@pytest.mark.parametrize('norm', ['BN', 'BN+TLU'])
def test_bn_mixes_them(measure, norm):
    row = measure(norm, depth=18)
    row.pop('norm')
    assert all(float(value) > .01 for value in row.values()), row
