import copy

import pytest
from mmcv.cnn import build_norm_layer, build_upsample_layer
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import nn

from frn_mmdet import FRN
from frn_mmdet.switch.config import set_norms, takes
from frn_mmdet.switch.norms import parse_norm_cfg


def norm_cfgs(value, path=''):
    """Every norm_cfg in a config, by path."""
    found = {}
    if isinstance(value, dict):
        for key, child in value.items():
            if key == 'norm_cfg':
                found[path] = child
            else:
                found |= norm_cfgs(child, f'{path}.{key}' if path else key)
    elif isinstance(value, list):
        for i, child in enumerate(value):
            found |= norm_cfgs(child, f'{path}.{i}')
    return found


def switched(cfg, value):
    model = copy.deepcopy(cfg.model)
    set_norms(model, parse_norm_cfg(value))
    return norm_cfgs(model)


def test_one_is_added_wherever_a_part_takes_it(stock):
    assert list(norm_cfgs(stock('MaskRCNN').model)) == ['backbone']
    assert switched(stock('MaskRCNN'), 'FRN') == {
        path: dict(type='FRN')
        for path in ('backbone', 'neck', 'roi_head.bbox_head',
                     'roi_head.mask_head')
    }
    assert list(switched(stock('RetinaNet'), 'FRN')) == [
        'backbone', 'neck', 'bbox_head'
    ]
    assert list(switched(stock('CascadeRCNN'), 'FRN')) == [
        'backbone', 'neck', 'roi_head.bbox_head.0', 'roi_head.bbox_head.1',
        'roi_head.bbox_head.2', 'roi_head.mask_head'
    ]


def test_nothing_of_the_old_one_leaks(stock):
    cfg = stock('mmdet::gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py')
    before = norm_cfgs(cfg.model)
    assert {c['num_groups'] for c in before.values()} == {32}
    after = switched(cfg, dict(type='FRN', learnable_eps=True))
    assert list(after.values()) == [dict(type='FRN', learnable_eps=True)] * 4


@pytest.mark.parametrize('config, paths', [
    ('detr/detr_r50_8xb2-150e_coco', ['backbone']),
    ('faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco',
     ['backbone', 'roi_head.shared_head']),
    ('retinanet/retinanet_r50_fpn_1x_coco', []),
])
def test_norms_that_train_from_now_on_are_said(stock, config, paths):
    model = stock(f'mmdet::{config}.py').model
    for norm in ('FRN', 'GN', 'BN'):
        said = set_norms(copy.deepcopy(model), parse_norm_cfg(norm))
        assert [text.partition('.norm_cfg.requires_grad: False -> True, ')[0]
                for text in said] == paths
        assert all(f'of its {norm} train' in text for text in said)
        fixed = parse_norm_cfg(dict(type=norm, requires_grad=False))
        assert set_norms(copy.deepcopy(model), fixed) == []
    assert set_norms(model, parse_norm_cfg(
        dict(type='FRN', parts='neck'))) == []


class Upsampling(nn.Module):

    def __init__(self, channels, norm_cfg=None):
        super().__init__()
        self.norm = build_norm_layer(norm_cfg, channels)[1]


class Decoder(nn.Module):
    """Hands its norm_cfg on, as mmsegmentation's UNet does."""

    def __init__(self, norm_cfg=None, upsample_cfg=None):
        super().__init__()
        self.up = build_upsample_layer(upsample_cfg, 8, norm_cfg=norm_cfg)


def test_an_upsampling_layer_gets_its_norm_from_its_owner():
    model = dict(backbone=dict(
        type=Decoder, upsample_cfg=dict(type=Upsampling)))
    set_norms(model, parse_norm_cfg('FRN'))
    cfg = model['backbone']
    assert type(cfg.pop('type')(**cfg).up.norm) is FRN


def test_parts(stock):
    after = switched(stock('MaskRCNN'), dict(type='GN', parts='head'))
    gn = dict(type='frn_mmdet.GN', num_groups=32)
    assert after['roi_head.bbox_head'] == after['roi_head.mask_head'] == gn
    assert after['backbone'] == dict(type='BN', requires_grad=True)
    assert 'neck' not in after


def test_parts_do_not_share_a_dict(stock):
    after = switched(stock('MaskRCNN'), 'FRN')
    assert len({id(cfg) for cfg in after.values()}) == 4


@pytest.mark.parametrize('name, takes_it', [
    ('ResNet', True),
    ('ResNetV1d', True),
    ('ResNeXt', True),
    ('FPN', True),
    ('RetinaHead', True),
    ('Shared4Conv1FCBBoxHead', True),
    ('FCNMaskHead', True),
    ('mmdet.FPN', True),
    ('RPNHead', False),
    ('StandardRoIHead', False),
    ('FocalLoss', False),
    ('no such class', False),
    (None, False),
])
def test_takes_norm_cfg(name, takes_it):
    """Through **kwargs to a base, too: build it and see."""
    init_default_scope('mmdet')
    assert takes(name, 'norm_cfg') is takes_it
    if takes_it:
        assert takes(MODELS.get(name), 'norm_cfg')


@pytest.mark.parametrize('part, switched', [
    (dict(type='SwinTransformer'), False),  # LN by default
    (dict(type='PyramidVisionTransformer', norm_cfg=dict(type='LN')), False),
    (dict(type='DynamicConv'), False),
    (dict(type='DynamicConv', norm_cfg=dict(type='BN')), True),
    (dict(type='MaskPointHead', num_classes=80, num_fcs=3), False),  # Conv1d
    (dict(type='FCNMaskHead'), True),  # a norm where there was none
    (dict(type='FCNMaskHead', norm_cfg=None), True),
    (dict(layer_cfg=dict(norm_cfg=dict(type='LN'))), False),
    (dict(type='FPN', conv_cfg=dict(type='Conv1d')), False),
])
def test_norms_over_tokens_and_points_are_left_alone(part, switched):
    model = dict(backbone=part)
    before = copy.deepcopy(model)
    set_norms(model, parse_norm_cfg('FRN'))
    if switched:
        assert model['backbone']['norm_cfg'] == dict(type='FRN')
    else:
        assert model == before
