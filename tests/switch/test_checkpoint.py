import pytest
import torch
from mmengine.runner import load_checkpoint

from frn_mmdet.errors import ConfigError

GN = dict(type='GN', num_groups=4)
TRACKED = dict(type='IN', track_running_stats=True)


@pytest.fixture
def load(small, tmp_path):
    """load(saved, loaded): through a file, as every mmdet tool does.

    Whether it says what it is, or its keys have to.
    """

    def _load(saved, loaded, name='MaskRCNN', refused=None):
        path = str(tmp_path / 'model.pth')
        first = small(name, saved, seed=1)
        second = small(name, loaded, seed=2)
        for state in (first.state_dict(), dict(first.state_dict())):
            torch.save(dict(state_dict=state), path)
            if refused is None:
                load_checkpoint(second, path)
                continue
            with pytest.raises(ConfigError) as error:
                load_checkpoint(second, path)
            assert not [word for word in refused
                        if word not in str(error.value)]
        return first, second

    return _load


@pytest.mark.parametrize('norm', [
    'FRN', 'BN', GN, 'LN', 'BRN', TRACKED, TRACKED | dict(affine=False)],
    ids=str)
def test_the_same_norm_loads(load, norm):
    first, second = load(norm, norm)
    state = second.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in first.state_dict().items())


@pytest.mark.parametrize('saved, loaded, words', [
    ('BN', dict(type='FRN', from_bn=False), ['has FRN', 'has BN', 'from_bn']),
    ('BN', dict(type='LN', from_bn=False), ['has LN', 'has BN', 'from_bn']),
    (GN, 'FRN', ['has FRN', 'has GN']),
    ('FRN', GN, ['has GN', 'has FRN']),
    (GN, 'LN', ['has LN', 'has GN']),
    ('LN', 'IN', ['has IN', 'has LN']),
    ('BN', TRACKED, ['has IN', 'has BN']),
    (TRACKED, 'BN', ['has BN', 'has IN']),
    (TRACKED, 'BRN', ['has BRN', 'has IN']),
    (TRACKED, 'FRN', ['has FRN', 'has IN']),
    (TRACKED | dict(affine=False), 'FRN', ['has FRN', 'has IN']),
    (None, 'BN', ['has BN', 'neck.lateral_convs.0.bn', 'has no norm']),
    ('FRN', dict(type='FRN', tlu=False), ['.tau', 'tlu=True']),
    (dict(type='BN', tlu=True), 'BN', ['.tau', 'tlu=True']),
])
def test_another_norm_is_refused(load, saved, loaded, words):
    load(saved, loaded, refused=words)


def test_relu_weights_start_a_tlu_model(load):
    """A threshold of 0 is a ReLU, so nothing is wrong with these."""
    first, second = load(dict(type='FRN', tlu=False), 'FRN')
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(first.backbone(x), second.backbone(x), strict=True):
        assert torch.equal(a, b)


def test_synchronised_or_not_is_the_same_norm(load):
    load('BN', 'SyncBN')


def test_a_backbone_alone_may_be_loaded(small, tmp_path):
    path = str(tmp_path / 'backbone.pth')
    first, second = small('MaskRCNN', seed=1), small('MaskRCNN', seed=2)
    torch.save({
        k: v
        for k, v in first.state_dict().items() if k.startswith('backbone')
    }, path)
    load_checkpoint(second, path)
    assert torch.equal(second.backbone.conv1.weight,
                       first.backbone.conv1.weight)


def test_mmdets_own_model_takes_anything(load):
    load('FRN', None)
