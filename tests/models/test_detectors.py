import inspect
import pickle

import pytest
import torch
from mmdet.models import detectors
from mmdet.registry import MODELS
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from frn_mmdet import FRN, TLU, norm_sites
from frn_mmdet.errors import ConfigError
from frn_mmdet.models import NormSwitch


@pytest.mark.parametrize('name', ['RetinaNet', 'MaskRCNN'])
def test_none_is_mmdets_own_model(stock, name):
    """Same keys, same initial weights, same losses, bit for bit."""
    init_default_scope('mmdet')
    runs = []
    for prefix in ('', 'frn_mmdet.'):
        cfg = stock(name).model
        cfg.type = prefix + cfg.type
        cfg.backbone.init_cfg = None
        if prefix:
            cfg.norm_cfg = None
        torch.manual_seed(0)
        model = MODELS.build(cfg)
        model.init_weights()
        x = torch.randn(1, 3, 64, 64)
        runs.append((model.state_dict(), model.extract_feat(x)))
    (state, feats), (own_state, own_feats) = runs
    assert list(state) == list(own_state)
    assert all(torch.equal(v, own_state[k]) for k, v in state.items())
    for a, b in zip(feats, own_feats, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    'name', ['RetinaNet', 'FasterRCNN', 'MaskRCNN', 'CascadeRCNN'])
def test_every_norm_of_the_stock_model_is_frn(build, name):
    model = build(name)
    assert isinstance(model, getattr(detectors, name))
    assert {s.norm for s in norm_sites(model)} == {'FRN', None}
    assert {m.eps for m in model.modules() if isinstance(m, FRN)} == {1e-6}


def test_the_config_is_left_as_it_is(stock):
    init_default_scope('mmdet')
    cfg = stock('RetinaNet').model
    cfg.update(type='frn_mmdet.RetinaNet', norm_cfg='FRN')
    before = cfg.to_dict()
    MODELS.build(cfg)
    assert cfg.to_dict() == before


def test_every_detector_has_its_own_name():
    """Whatever mmdet builds from a backbone; no list is kept here either."""
    names = [name for name in detectors.__all__
             if 'backbone' in str(inspect.signature(getattr(detectors, name)))]
    assert len(names) > 40
    for name in names:
        cls = MODELS.get(f'frn_mmdet.{name}')
        assert issubclass(cls, getattr(detectors, name)), name
        assert issubclass(cls, NormSwitch), name
        assert pickle.loads(pickle.dumps(cls)) is cls


@pytest.mark.parametrize('name', [
    'SoftTeacher', 'SemiBaseDetector', 'Detectron2Wrapper', 'ByteTrack',
    'QDTrack', 'MaskTrackRCNN'])
def test_trackers_and_wrappers_are_refused_by_name(name):
    with pytest.raises(ConfigError) as error:
        MODELS.build(dict(type=f'frn_mmdet.{name}', norm_cfg='FRN'))
    assert f'{name} is not a detector' in str(error.value)


def test_any_other_detector_in_three_lines(build):

    @MODELS.register_module(force=True)
    class FCOSWithNorm(NormSwitch, detectors.FCOS):
        pass

    model = build(
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        options=dict(type='FCOSWithNorm'))
    sites = norm_sites(model)
    assert {s.norm for s in sites} == {'FRN', None}
    # In front of the second extra convolution the FPN has a ReLU of its own.
    assert sum(s.activation == 'TLU' for s in sites) == 49 + 8 + 1


@pytest.mark.parametrize('norm', ['FRN', 'GN', 'LN', 'IN', 'BN'])
def test_zero_init_residual(small, norm):
    """The last gamma of a block starts at 0, whatever the norm."""
    r50 = {'backbone.depth': 50, 'neck.in_channels': [32, 64, 128, 256]}
    value = dict(type=norm, num_groups=4) if norm == 'GN' else norm
    model = small('RetinaNet', value, r50)
    model.init_weights()
    for block in model.backbone.layer3:
        assert block.norm3.weight.eq(0).all()
        assert block.norm2.weight.eq(1).all()
    model = small('RetinaNet', value, r50 | {
        'backbone.zero_init_residual': False})
    model.init_weights()
    assert model.backbone.layer3[0].norm3.weight.eq(1).all()


@pytest.mark.parametrize('name', ['RetinaNet', 'MaskRCNN'])
def test_images_of_a_batch_do_not_influence_each_other(small, name):
    """A whole model in training mode; the same measure for BN is not 0."""
    x = torch.randn(3, 3, 160, 160)
    for norm, independent in (('FRN', True), ('BN', False)):
        model = small(name, norm).train()
        together = model.extract_feat(x)
        alone = [model.extract_feat(x[i:i + 1]) for i in range(3)]
        for level, feat in enumerate(together):
            apart = torch.cat([feats[level] for feats in alone])
            close = torch.allclose(feat, apart, rtol=1e-4, atol=1e-5)
            assert close is independent


def test_mask_head_with_no_positive_roi(small, losses):
    """An image without objects gives the RoI heads an empty batch."""
    model = small('MaskRCNN')
    loss = losses(model, items=[0, 0], with_mask=True)
    loss.backward()
    assert loss.isfinite()
    empty = torch.zeros(0, 16, 14, 14)
    assert model.roi_head.mask_head(empty).shape == (0, 80, 28, 28)


def test_syncbn_alone_is_refused_in_training(small):
    model = small('RetinaNet', 'SyncBN')
    model.eval()
    with pytest.raises(ConfigError, match='SyncBN trains on GPUs in a proce'):
        model.train()
    small('RetinaNet', 'BN').train()


@pytest.mark.parametrize('norm', ['FRN', 'BN'])
def test_thresholds_decay_and_freeze_as_norms_do(small, norm):
    """Those behind an add, too, which no norm has."""
    model = small('RetinaNet', dict(type=norm, tlu=True))
    wrapper = build_optim_wrapper(model, dict(
        optimizer=dict(type='SGD', lr=.1, weight_decay=.1),
        paramwise_cfg=dict(norm_decay_mult=0., bypass_duplicate=True)))
    decay = {id(p): group['weight_decay']
             for group in wrapper.param_groups for p in group['params']}
    taus = {name: p for name, p in model.named_parameters()
            if name.endswith('tau')}
    assert any(name.endswith('tlu.tau') for name in taus)
    assert {decay[id(tau)] for tau in taus.values()} == {0.}
    frozen = small('RetinaNet', dict(type=norm, tlu=True, requires_grad=False))
    assert not any(p.requires_grad for name, p in frozen.named_parameters()
                   if name.endswith('tau'))


def test_a_conversion_to_syncbn_does_not_pass_for_brn(small):
    """As sync_bn in a config does; no other norm but BN is touched."""
    for norm in ('FRN', 'BN', 'LN', 'IN', 'LFRN'):
        model = small('RetinaNet', norm)
        nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
        synced = [m for m in model.modules()
                  if isinstance(m, nn.SyncBatchNorm)]
        assert bool(synced) == (norm == 'BN')
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small('RetinaNet', 'BRN'))
    model.eval()  # in test the two are one
    with pytest.raises(ConfigError, match='BRN was made SyncBN.*sync_bn'):
        model.train()


@pytest.mark.parametrize('norm, options, groups', [
    ('GN', {}, 8),
    (dict(type='GN', num_groups=7), {}, 4),
    (dict(type='GFRN', parts=['neck', 'head']), {}, 16),
    ('GN', {'neck.out_channels': 20, 'bbox_head.in_channels': 20}, 4),
], ids=str)
def test_groups_that_divide_are_named(small, norm, options, groups):
    """The first layer that is built is not the only one."""
    with pytest.raises(ConfigError) as error:
        small('RetinaNet', norm, options)
    text = str(error.value)
    assert text.startswith('model.norm_cfg.num_groups')
    assert f'; num_groups={groups} divides the channels of every layer' in text
    value = norm if isinstance(norm, dict) else dict(type=norm)
    model = small('RetinaNet', value | dict(num_groups=groups), options)
    layers = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert {m.num_groups for m in layers if not isinstance(m, TLU)} == {groups}


def test_other_errors_are_not_hidden(small):
    with pytest.raises(KeyError, match='invalid depth 17'):
        small('RetinaNet', 'FRN', {'backbone.depth': 17})


def test_a_wrong_value_is_refused_before_anything_is_built(build):
    with pytest.raises(ConfigError, match="unknown norm 'XN'; choose one of"):
        build('RetinaNet', 'XN', {'backbone.depth': 17})
