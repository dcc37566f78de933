"""Weights between detectors of one norm: what may move, what is refused."""

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import load_state_dict

from frn_mmdet.errors import ConfigError

GN = dict(type='GN', num_groups=4)
# With BN's keys.
TRACKED = dict(type='IN', track_running_stats=True)
EACH = ['FRN', dict(type='FRN', tlu=False),
        dict(type='FRN', learnable_eps=True), dict(type='BN', tlu=True), GN,
        TRACKED]
NORMS = pytest.mark.parametrize('norm', EACH, ids=str)


@pytest.fixture
def move(tmp_path):
    """move(first, second): by a file; returns the second's new weights.

    Those of its keys that are in the first, too, in the same shape.
    """

    def _move(first, second, state=None):
        path = str(tmp_path / 'weights.pth')
        state = first.state_dict() if state is None else state
        torch.save(dict(state_dict=state), path)
        own = {key: value.shape for key, value in second.state_dict().items()}
        load_checkpoint(second, path, logger='silent')
        new = second.state_dict()
        common = [key for key, shape in own.items()
                  if key in state and state[key].shape == shape]
        assert all(torch.equal(new[key], state[key]) for key in common)
        return common

    return _move


def spread(model, seed=0):
    """Random parameters: thresholds and gammas that are not the initial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def has_norms(keys, norm, part):
    end = ('.tau' if norm == 'FRN' or norm == dict(type='BN', tlu=True)
           else '.eps_l' if 'learnable_eps' in norm else 'n1.weight')
    return any(key.startswith(part) and key.endswith(end) for key in keys)


@NORMS
def test_from_one_detector_to_another(small, move, norm):
    """The backbone and neck of a RetinaNet start a Mask R-CNN."""
    common = move(spread(small('RetinaNet', norm)), small('MaskRCNN', norm))
    assert has_norms(common, norm, 'backbone.')
    assert any(key.startswith('neck.') for key in common)
    assert not any('head' in key for key in common)
    move(spread(small('MaskRCNN', norm)), small('RetinaNet', norm))


MORE_AND_FEWER = [
    ({'bbox_head.stacked_convs': 3}, {'bbox_head.stacked_convs': 1}),
    ({'backbone.depth': 34}, {'backbone.depth': 18}),
    ({'neck.num_outs': 6}, {'neck.num_outs': 5}),
    ({'backbone.deep_stem': True}, {})]


@pytest.mark.parametrize('norm, more, fewer', [
    *(('FRN', *both) for both in MORE_AND_FEWER),
    *((norm, *MORE_AND_FEWER[i % 4]) for i, norm in enumerate(EACH[1:]))])
def test_more_layers_and_fewer(small, move, norm, more, fewer):
    deep, shallow = small('RetinaNet', norm, more), small(
        'RetinaNet', norm, fewer)
    assert move(spread(deep), shallow)
    assert move(spread(shallow), small('RetinaNet', norm, more))


@NORMS
def test_weights_alone_averages_and_parts(small, move, norm):
    """As publish_model, EMAHook and a backbone's own file have them."""
    first = spread(small('RetinaNet', norm))
    average = ExponentialMovingAverage(first).module
    for state in (dict(first.named_parameters()) | dict(
            first.named_buffers()), average.state_dict()):
        assert move(None, small('MaskRCNN', norm), state)
    other = small('MaskRCNN', norm)
    load_state_dict(other.backbone, first.backbone.state_dict(), strict=True)
    assert all(torch.equal(value, other.backbone.state_dict()[key])
               for key, value in first.backbone.state_dict().items())


@pytest.mark.parametrize('saved, loaded, argument', [
    (dict(type='FRN', learnable_eps=True), 'FRN', 'learnable_eps=True'),
    ('FRN', dict(type='FRN', learnable_eps=True), 'learnable_eps=False'),
    ('IN', dict(type='IN', affine=False), 'affine=True'),
    ('IN', TRACKED, 'track_running_stats=False'),
    (TRACKED, 'IN', 'track_running_stats=True'),
    ('BN', dict(type='BN', affine=False), 'affine=True'),
    (dict(type='BN', affine=False), 'BN', 'affine=False'),
    ('BN', dict(type='BN', track_running_stats=False),
     'track_running_stats=True'),
    (dict(type='BN', track_running_stats=False), 'BN',
     'track_running_stats=False'),
], ids=str)
def test_what_one_side_lacks_is_named(small, move, saved, loaded, argument):
    """A learnt eps that is dropped is another detector."""
    first, second = small('RetinaNet', saved), small('RetinaNet', loaded)
    before = {k: v.clone() for k, v in second.state_dict().items()}
    state = dict(spread(first).state_dict())  # says nothing of itself
    with pytest.raises(ConfigError) as error:
        move(None, second, state)
    text = str(error.value)
    assert f'set model.norm_cfg.{argument}' in text
    assert 'backbone.' in text
    assert all(torch.equal(v, before[k])
               for k, v in second.state_dict().items())
    with pytest.raises(ConfigError, match=argument):
        load_state_dict(second.backbone, dict(first.backbone.state_dict()))


@pytest.mark.parametrize('norm', ['GN', 'GFRN'])
def test_other_groups_are_another_norm(small, move, norm):
    """Of the same keys and shapes, but another function."""
    first, second = (small('RetinaNet', dict(type=norm, num_groups=groups))
                     for groups in (4, 8))
    words = (r'the backbone of the checkpoint was trained with num_groups=4 '
             r'and the model has 8; set model\.norm_cfg\.num_groups=4')
    with pytest.raises(ConfigError, match=words):
        move(first, second)
    average = ExponentialMovingAverage(first).module
    with pytest.raises(ConfigError, match=words):
        load_state_dict(second.backbone, average.backbone.state_dict())
    bare = dict(first.state_dict())  # whose groups nobody knows
    assert move(None, second, bare)


@pytest.mark.parametrize('norm', ['FRN', 'BN', GN], ids=str)
def test_a_layer_that_loses_its_norm_is_refused(small, move, norm):
    """The weights of a convolution that had a norm mean nothing without."""
    value = norm if isinstance(norm, dict) else dict(type=norm)
    first, second = small('MaskRCNN', norm), small(
        'MaskRCNN', value | dict(parts=['backbone', 'neck']))
    with pytest.raises(ConfigError) as error:
        move(first, second)
    assert "add 'head' to model.norm_cfg.parts" in str(error.value)
    assert 'roi_head.' in str(error.value)


def test_a_checkpoint_of_nothing_here_is_refused(small, move):
    """A backbone's own file, given as that of a detector, say."""
    for norm in ('FRN', GN):
        first, second = small('RetinaNet', norm), small('RetinaNet', norm)
        state = first.backbone.state_dict()
        with pytest.raises(ConfigError) as error:
            move(None, second, state)
        for word in ('load_from', 'of this detector', next(iter(state))):
            assert word in str(error.value)
        with pytest.raises(ConfigError, match='of this detector'):
            load_state_dict(second, {'meta': {}})
        load_state_dict(second, {})
        load_state_dict(second, {f'backbone.{k}': v for k, v in state.items()})


def test_norms_per_level_do_not_fit_a_shared_head(small, move):
    """What convert_checkpoint.py makes of a BN RetinaNet of ours."""
    first = small('RetinaNet', 'FRN', {
        'bbox_head.type': 'RetinaSepBNHead', 'bbox_head.num_ins': 5})
    with pytest.raises(ConfigError) as error:
        move(first, small('RetinaNet', 'FRN'))
    text = str(error.value)
    assert 'at bbox_head.cls_convs.0.0.frn, where the model has none' in text
    assert 'none at bbox_head.cls_convs.0.frn' in text
    move(first, small('MaskRCNN', 'FRN'))


def test_a_gamma_that_is_missing_or_no_tensor(small):
    state = dict(small('RetinaNet', 'FRN').state_dict())
    del state['backbone.frn1.bias']
    with pytest.raises(ConfigError, match=r'frn1.* give a whole checkpoint'):
        load_state_dict(small('RetinaNet', 'FRN'), state)
    state['backbone.frn1.weight'] = 3
    with pytest.raises(ConfigError, match=r'has FRN at backbone\.frn1'):
        load_state_dict(small('RetinaNet', 'FRN'), state)


def test_a_bottleneck_is_no_basic_block(small, move):
    """Its second norm has a threshold, and there the model has a norm."""
    wide = {'backbone.depth': 50, 'neck.in_channels': [32, 64, 128, 256]}
    with pytest.raises(ConfigError, match=r'frn2\.tau .* architecture'):
        move(small('RetinaNet', options=wide), small('RetinaNet'))


@NORMS
def test_an_activation_more(small, move, norm):
    """FCOS's neck acts before its extra convolution, RetinaNet's does not."""
    more = {'neck.add_extra_convs': 'on_output',
            'neck.relu_before_extra_convs': True}
    first = spread(small('RetinaNet', norm, more))
    thresholds = [key for key in first.state_dict()
                  if key.startswith('neck') and key.endswith('tlu.tau')]
    has_tlu = norm == 'FRN' or 'learnable_eps' in norm or 'BN' in str(norm)
    assert bool(thresholds) == has_tlu
    move(first, small('RetinaNet', norm))
    move(small('RetinaNet', norm), first)


@NORMS
def test_a_layer_of_another_kind_is_no_norm(small, move, norm):
    """A shortcut's second layer is its norm; in ResNetV1d its convolution."""
    v1d = {'backbone.type': 'ResNetV1d'}
    move(spread(small('RetinaNet', norm, v1d)), small('RetinaNet', norm))
    move(spread(small('RetinaNet', norm)), small('RetinaNet', norm, v1d))
