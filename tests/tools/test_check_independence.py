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
    'FRN:own_area=true', 'FRN:learnable_eps=true:own_area=true',
    'GN:own_area=true',
])
def test_images_are_alone(measure, norm):
    """Batch mates, mode, how a batch is cut or padded: all the same."""
    row = measure(norm, depth=18)
    assert row.pop('norm') == norm
    assert all(float(value) < 1e-11 for value in row.values()), row


def test_padding_is_seen_where_it_is_not_left_out(measure):
    row = measure('FRN:own_area=false', depth=18)
    assert all(float(row[f'padded, {what}']) > .01
               for what in ('training', 'test', 'boxes')), row


@pytest.mark.parametrize('norm', ['BN', 'BN+TLU'])
def test_bn_mixes_them(measure, norm):
    row = measure(norm, depth=18)
    row.pop('norm')
    padded = [row.pop(key) for key in [*row] if key.startswith('padded')]
    assert all(float(value) > .01 for value in row.values()), row
    assert [float(value) == 0 for value in padded] == [False, True, True]
