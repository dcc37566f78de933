"""Norms that mmdet's code writes down, and those that are not over a map."""

import logging
import random

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule
from mmdet.models import RetinaHead, RetinaNet
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from torch import nn

from frn_mmdet import FRN, TLU, norm_sites
from frn_mmdet.errors import ConfigError
from frn_mmdet.models import NormSwitch
from frn_mmdet.switch.apply import apply_plan
from frn_mmdet.switch.norms import parse_norm_cfg

PLAN = parse_norm_cfg('FRN')
R18 = {'backbone.depth': 18, 'backbone.init_cfg': None,
       'neck.in_channels': [64, 128, 256, 512]}


class Detector(nn.Module):

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def bn_of(channels, norm=nn.BatchNorm2d):
    """Not a name of the config's: the class itself."""
    return nn.Sequential(nn.Conv2d(8, channels, 1), norm(channels), nn.ReLU(),
                         nn.Conv2d(channels, 8, 1))


def test_norms_in_mmdets_code_are_switched(build):
    """Double-heads writes BN into its residual block."""
    model = build('mmdet::double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
                  options=R18)
    norms = [m for m in model.modules() if isinstance(
        m, (nn.modules.batchnorm._NormBase, nn.GroupNorm))]
    assert {type(norm) for norm in norms} - {TLU} == {FRN}
    assert model.switch_outcome.stayed == {}
    replaced = model.switch_outcome.replaced
    assert set(replaced.values()) == {'BN'} and len(replaced) == 3
    assert all('res_block' in path for path in replaced)


@pytest.mark.parametrize('norm', [
    'FRN', 'LN', 'SyncBN', dict(type='GN', num_groups=4),
    dict(type='BN', tlu=True), dict(type='FRN', eps=1e-3)])
def test_the_switched_norm_is_the_plans(norm):
    model = Detector(bn_of(16, nn.InstanceNorm2d))
    plan = parse_norm_cfg(norm)
    outcome = apply_plan(model, plan)
    new = model.backbone[1]
    assert type(new) is plan.norm.layer
    for key, value in plan.norm_cfg.items():
        assert key == 'type' or getattr(new, key) == value
    assert outcome.sites[0][1:3] == (plan.name, 'TLU' if plan.tlu else 'ReLU')


def test_it_trains_if_the_old_one_did():
    for trains in (True, False):
        model = Detector(bn_of(16)).eval()
        model.backbone[1].requires_grad_(trains)
        apply_plan(model, PLAN)
        norm = model.backbone[1]
        assert {p.requires_grad for p in norm.parameters()} == {trains}
        assert norm.tau is not None
        assert not norm.training


def test_one_whose_relu_is_a_function_stays_and_is_named(build):
    """Grid R-CNN: F.relu(self.norm1(x)), a GroupNorm."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logger = MMLogger.get_instance('test_grid')
    logger.addHandler(handler)
    model = build('mmdet::grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco.py',
                  options=R18)
    logger.removeHandler(handler)
    assert list(model.switch_outcome.stayed) == ['roi_head.grid_head.norm1']
    assert type(model.roi_head.grid_head.norm1) is nn.GroupNorm
    assert ('roi_head.grid_head.norm1: roi_head.grid_head.forward (relu) acts '
            'on it and cannot become a TLU') in records[-1]


def test_groups_that_do_not_divide_its_channels_stay():
    model = Detector(nn.Sequential(ConvModule(
        8, 8, 1, norm_cfg=dict(type='GN', num_groups=8)), *bn_of(12)))
    outcome = apply_plan(model, parse_norm_cfg(dict(type='GN', num_groups=8)))
    assert list(outcome.stayed) == ['backbone.2']
    assert outcome.stayed['backbone.2'] == (
        'num_groups=8 does not divide its 12 channels, 6 does')


class Spare(nn.Module):
    """It has a norm that its ``forward`` does not use."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.spare = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.conv(x)


def test_one_that_does_not_run_stays():
    model = Detector(Spare())
    outcome = apply_plan(model, PLAN)
    assert list(outcome.stayed) == ['backbone.spare']
    assert 'did not run' in outcome.stayed['backbone.spare']


def test_norms_over_1x1_maps_stay_or_are_said(build):
    pooled = nn.Sequential(nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1),
                           *bn_of(16))
    assert list(apply_plan(Detector(pooled), PLAN).stayed) == ['backbone.3']
    config = 'mmdet::resnest/mask-rcnn_s50_fpn_syncbn-backbone+head_ms-1x_' \
        'coco.py'
    for learnable, said in ((False, 1), (True, 0)):
        model = build(config, dict(type='FRN', learnable_eps=learnable))
        assert bool(model.switch_outcome.flat) == said


def test_norms_over_tokens_are_left_alone_and_counted(build):
    model = build('mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
                  options={'backbone.init_cfg': None})
    assert {s.norm for s in norm_sites(model.backbone)} == {'LayerNorm'}
    assert model.switch_outcome.of_tokens == {'LayerNorm': 31}
    model(torch.zeros(1, 3, 64, 64), mode='tensor')


def test_a_width_that_does_not_fit_is_not_taken_for_tokens(build):
    """The neck cannot run, so what it gives to the head is made up."""
    with pytest.raises(ConfigError) as error:
        build('RetinaNet', options=R18 | {
            'neck.in_channels': [64, 64, 256, 512]})
    assert 'to have 64 channels' in str(error.value)
    assert 'tokens' not in str(error.value)


def test_no_norm_is_added_over_points(build):
    """PointRend: a point's mask must not depend on the others drawn."""
    model = build('mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py',
                  options=R18)
    point_head = model.roi_head.point_head
    assert norm_sites(point_head) == []
    points, coarse = torch.randn(1, 256, 9), torch.randn(1, 80, 9)
    alone = point_head(points[..., :1], coarse[..., :1])
    torch.testing.assert_close(point_head(points, coarse)[..., :1], alone)


def test_a_plans_norm_over_points_is_refused():
    model = Detector(nn.Sequential(
        nn.Flatten(2), ConvModule(8, 8, 1, conv_cfg=dict(type='Conv1d'),
                                  norm_cfg=dict(type='FRN'))))
    model.backbone.in_channels = 8
    with pytest.raises(ConfigError, match=r'shape \(1, 8, 4096\), not a map'):
        apply_plan(model, PLAN)


class CalledAsAnother(nn.Module):
    """ConvNeXt calls its norm with an argument, on a map in NHWC or not."""

    def __init__(self, *dims, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.norm = FRN(8)
        self.dims = dims
        self.kwargs = kwargs

    def forward(self, x):
        return self.norm(self.conv(x).permute(self.dims), **self.kwargs)


@pytest.mark.parametrize('value', ['FRN', dict(type='FRN', tlu=False)])
@pytest.mark.parametrize('module, match', [
    (CalledAsAnother(0, 1, 2, 3, data_format='channel_first'),
     'backbone.norm: FRN would be called .*: data_format; leave'),
    (CalledAsAnother(0, 2, 3, 1),
     r'backbone.norm: FRN has 8 channels .* \(1, 64, 64, 8\).*; leave')])
def test_a_plans_norm_that_is_called_as_another_is_refused(
        module, match, value):
    with pytest.raises(ConfigError, match=f"{match} 'backbone' out of"):
        apply_plan(Detector(module), parse_norm_cfg(value))


class Fails(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv = ConvModule(8, 8, 1, norm_cfg=dict(type='FRN'),
                               act_cfg=None)

    def forward(self, x):
        raise RuntimeError('only at night')


def test_what_does_not_run_is_refused_with_the_reason():
    with pytest.raises(ConfigError) as error:
        apply_plan(Detector(Fails()), PLAN)
    for words in ('backbone.conv.', 'only at night', "leave 'backbone' out"):
        assert words in str(error.value)
    apply_plan(Detector(Fails()), parse_norm_cfg(dict(type='FRN', tlu=False)))
    assert norm_sites(Fails())[0].activation == '?'


def test_a_teacher_stays_as_it_was_trained(build, stock):
    config = 'mmdet::lad/lad_r50-paa-r101_fpn_2xb8_coco_1x.py'
    model = build(config, options={'teacher_ckpt': None})
    kinds = {s.norm for s in norm_sites(model.teacher_model)}
    assert kinds == {'BN', 'GN', None}
    assert {s.norm for s in norm_sites(model.backbone)} == {'FRN', None}


class Two(nn.Module):
    """Nobody can guess its inputs; what its children give is activated."""

    def __init__(self, *children):
        super().__init__()
        self.inner = nn.Sequential(*children)

    def forward(self, a, b):
        return torch.relu(self.inner(a) + b)


@pytest.mark.parametrize('children', [
    (nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)),
    (nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()),
    (nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU()),
    (nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU()),
])
def test_a_norm_of_a_part_that_does_not_run_stays(children):
    model = Detector(Two(*children))
    outcome = apply_plan(model, PLAN)
    assert list(outcome.stayed) == ['backbone.inner.1']
    assert model.backbone.inner[1] is children[1]


class NormAct(nn.BatchNorm2d):
    """As timm has it."""

    def forward(self, x):
        return torch.relu(super().forward(x))


class MapLayerNorm(nn.LayerNorm):
    """As ConvNeXt has it: over the channels of a map."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize('norm', [NormAct, MapLayerNorm])
def test_a_norm_that_does_more_stays_and_is_named(norm):
    model = Detector(bn_of(16, norm))
    outcome = apply_plan(model, PLAN)
    assert outcome.stayed == {
        'backbone.1': f'{norm.__name__} does more than normalise'}


def test_a_norm_of_two_names_is_switched_under_both():
    model = Detector(bn_of(16))
    same = nn.Sequential(nn.Conv2d(8, 16, 1), model.backbone[1], nn.ReLU(),
                         nn.Conv2d(16, 8, 1))
    model.backbone = nn.Sequential(model.backbone, same)
    apply_plan(model, PLAN)
    assert type(same[1]) is FRN
    assert same[1] is model.backbone[0][1]


def _head(build, name, cls):
    MODELS.register_module(name=name, module=cls, force=True)
    return build('RetinaNet', options=R18 | {'bbox_head.type': name})


def test_an_activation_in_the_loss_only_is_refused(build):

    class Head(RetinaHead):

        def loss(self, x, samples):
            return super().loss(tuple(torch.relu(y) for y in x), samples)

    with pytest.raises(ConfigError, match='in training as it does in test'):
        _head(build, 'HeadWithALoss', Head)


def test_a_head_that_does_not_run_is_refused_also_without_a_norm(build):

    class Head(RetinaHead):

        def forward(self, x, must_be_given):
            return super().forward(tuple(torch.relu(y) for y in x))

    with pytest.raises(ConfigError, match='must_be_given'):
        _head(build, 'HeadWithAnArgument', Head)


def test_a_detector_of_other_norms_is_not_run_in_training(small):
    """Where there is nothing to place there is nothing to refuse."""
    assert small('RetinaNet', 'IN').switch_outcome.stayed == {}


def test_nothing_else_changes(small):
    np.random.seed(0)
    random.seed(0)
    torch.manual_seed(0)
    before = (np.random.get_state()[1].tolist(), random.getstate(),
              torch.get_rng_state().tolist())
    model = small('MaskRCNN', seed=0)
    model.backbone.frn1.forward = forward = model.backbone.frn1.forward
    torch.manual_seed(0)
    norm_sites(model)
    assert model.backbone.frn1.forward is forward
    assert before == (np.random.get_state()[1].tolist(), random.getstate(),
                      torch.get_rng_state().tolist())


class Tan(nn.Module):

    def forward(self, x):
        return x.tan()


class TanInTraining(nn.Module):

    def forward(self, x):
        return x.tan() if self.training else x


@pytest.mark.parametrize('act', [Tan, TanInTraining])
def test_a_norm_that_goes_into_an_unknown_operation_stays(act):
    model = Detector(nn.Sequential(
        nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), act(), nn.Conv2d(8, 8, 1)))
    outcome = apply_plan(model, PLAN)
    assert outcome.stayed == {'backbone.1': 'backbone.2 hands what it gives '
                              'to tan, an unknown operation'}
    assert type(model.backbone[1]) is nn.BatchNorm2d
    # Without TLUs it does not matter what acts there.
    model = Detector(model.backbone)
    apply_plan(model, parse_norm_cfg(dict(type='FRN', tlu=False)))
    assert type(model.backbone[1]) is FRN


@pytest.mark.parametrize('method', ['loss', '_forward'])
def test_an_activation_of_the_detectors_own_names_its_class(build, method):
    """Its path would be empty."""

    def activated(self, x, samples=None):
        feats = tuple(torch.relu(y) for y in self.extract_feat(x))
        return getattr(self.bbox_head, method.strip('_'))(
            feats, *[samples] * (method == 'loss'))

    cls = type('OwnWay', (NormSwitch, RetinaNet), {method: activated})
    MODELS.register_module(name='OwnWay', module=cls, force=True)
    with pytest.raises(ConfigError, match=r'^OwnWay(:| \(relu\):) '):
        build('RetinaNet', options=R18 | {'type': 'OwnWay'})
