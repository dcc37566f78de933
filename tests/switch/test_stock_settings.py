import copy

import pytest
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from frn_mmdet.switch.config import set_norms
from frn_mmdet.switch.norms import parse_norm_cfg
from frn_mmdet.switch.stock_settings import adjust_settings


@pytest.fixture
def adjusted(stock):
    """adjusted(name, norm, **backbone): the model's config, and changes."""
    init_default_scope('mmdet')

    def _adjusted(name, norm, **backbone):
        model = stock(name).model
        model.backbone.update(backbone)
        changes = adjust_settings(model, parse_norm_cfg(norm))
        return model, changes

    return _adjusted


OWN = dict(type='Pretrained', checkpoint='work_dirs/mine.pth')


@pytest.mark.parametrize('norm', [
    dict(type='GN', affine=False), dict(type='GN', bias=False),
    dict(type='IN', track_running_stats=True)], ids=str)
def test_a_zoo_checkpoint_of_another_norm_goes(adjusted, norm):
    """Of one that has no place for BN's gamma, beta or statistics."""
    model, changes = adjusted('RetinaNet', norm)
    assert model.backbone.init_cfg is None
    assert model.backbone.frozen_stages == -1
    assert not model.backbone.norm_eval
    text = '\n'.join(changes)
    assert 'torchvision://resnet50' in text
    assert f"trained with BN, which {norm['type']} cannot go on from" in text
    assert 'backbone.frozen_stages: 1 -> -1' in text


@pytest.mark.parametrize('norm, words', [
    ('FRN', 'FRN starts from its statistics (from_bn='),
    (dict(type='FRN', from_bn=0), 'from_bn=0'),
    ('BRN', 'BRN starts from its statistics'),
    *((norm, f'{norm} starts from its statistics (from_bn=10)')
      for norm in ('GN', 'IN', 'LN', 'GFRN', 'LFRN')),
    (dict(type='GN', from_bn=1, num_groups=8), 'from_bn=1'),
])
def test_a_zoo_checkpoint_of_bn_stays_where_it_is_converted(
        adjusted, stock, norm, words):
    """And all that relies on it: frozen stages, norm_eval."""
    model, changes = adjusted('MaskRCNN', norm)
    assert model.backbone == stock('MaskRCNN').model.backbone
    assert len(changes) == 1
    for word in ('torchvision://resnet50', words, 'frozen_stages=1 stays'):
        assert word in changes[0]


@pytest.mark.parametrize('norm', ['FRN', 'BRN', 'BN', 'GN'])
@pytest.mark.parametrize('checkpoint', ['torchvision://resnet50',
                                        'work_dirs/mine.pth'])
def test_from_scratch_is_from_scratch(adjusted, norm, checkpoint):
    model, changes = adjusted(
        'MaskRCNN', dict(type=norm, from_bn=False),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    assert model.backbone.init_cfg is None
    assert model.backbone.frozen_stages == -1
    assert 'is not loaded, since from_bn is False' in changes[0]


@pytest.mark.parametrize('norm', ['BN', 'SyncBN', dict(type='BN', tlu=True)])
def test_a_zoo_checkpoint_of_the_same_norm_stays(adjusted, stock, norm):
    model, changes = adjusted('MaskRCNN', norm)
    assert model.backbone == stock('MaskRCNN').model.backbone
    assert changes == []


@pytest.mark.parametrize('norm, stays', [
    ('GN', True),
    (dict(type='GN', num_groups=16), False),
    ('BN', False),
    ('FRN', False),
])
def test_the_zoos_group_norm(adjusted, norm, stays):
    model, changes = adjusted('mmdet::gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py',
                         norm)
    assert (model.backbone.init_cfg is not None) is stays
    assert bool(changes) is not stays
    if not stays:
        assert 'resnet50_gn was trained with GN' in changes[0]


@pytest.mark.parametrize('norm', ['FRN', 'BN', 'GN'])
def test_a_users_own_checkpoint_is_never_dropped(adjusted, norm):
    model, changes = adjusted('MaskRCNN', norm, init_cfg=OWN)
    assert model.backbone.init_cfg == OWN
    assert model.backbone.frozen_stages == 1
    assert len(changes) == 1
    assert 'work_dirs/mine.pth is your own and stays' in changes[0]
    assert ('or with BN' in changes[0]) is (norm != 'BN')


@pytest.mark.parametrize('path', [
    'https://example.org/resnet50.pth', 's3://bucket/resnet50.pth',
    'torchvision/resnet50.pth'
])
def test_what_is_not_a_zoos_is_the_users(adjusted, path):
    own = dict(type='Pretrained', checkpoint=path)
    model, _ = adjusted('MaskRCNN', 'FRN', init_cfg=own)
    assert model.backbone.init_cfg == own


def test_old_key_pretrained(adjusted):
    model, changes = adjusted(
        'MaskRCNN', dict(type='GN', affine=False), init_cfg=None,
        pretrained='torchvision://resnet50')
    assert 'pretrained' not in model.backbone
    assert 'dropped' in changes[0]


def test_batch_norm_from_scratch_learns_its_statistics(adjusted):
    model, changes = adjusted('MaskRCNN', 'BN', init_cfg=None)
    assert not model.backbone.norm_eval
    assert model.backbone.frozen_stages == -1
    assert any('norm_eval: True -> False' in s for s in changes)
    # ... also where the config is silent: True is mmdet's default.
    model, changes = adjusted('FasterRCNN', 'BN', init_cfg=None)
    assert not model.backbone.norm_eval


def test_a_backbone_whose_own_default_is_right_is_left_alone():
    model = dict(backbone=dict(type='frn_mmdet.ResNetV2', depth=50))
    assert adjust_settings(model, parse_norm_cfg('BN')) == []


def test_other_parts_are_left_alone(adjusted, stock):
    model, changes = adjusted('RetinaNet', dict(type='FRN', parts='head'))
    assert model == stock('RetinaNet').model
    assert changes == []


@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
def test_a_shared_head_gets_a_batch_norm_per_level(adjusted, norm):
    model, changes = adjusted('RetinaNet', norm)
    assert model.bbox_head.type == 'RetinaSepBNHead'
    assert model.bbox_head.num_ins == 5
    assert len(changes) == 1
    assert 'bypass_duplicate=True' in changes[0]


def test_any_other_head_gets_them_when_it_is_built(adjusted):
    model, changes = adjusted(
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 'BN')
    assert model.bbox_head.type == 'FCOSHead'
    assert not any('bbox_head' in s for s in changes)


def test_all_of_it_is_in_one_record(build):
    records = []
    logger = MMLogger.get_instance('test_stock_settings')
    handler = logger.handlers[0]
    handler.emit = records.append
    build('RetinaNet')
    texts = [r.getMessage() for r in records if 'norm_cfg' in r.getMessage()]
    assert len(texts) == 1
    for words in ('69', 'FRN', '57', 'TLU', 'torchvision://resnet50',
                  'frozen_stages'):
        assert words in texts[0]


def test_norms_that_train_from_now_on_are_in_the_record(small):
    records = []
    logger = MMLogger.get_instance('test_stock_settings_requires_grad')
    logger.handlers[0].emit = lambda r: records.append(r.getMessage())
    options = {'backbone.norm_cfg.requires_grad': False}
    model = small('RetinaNet', 'FRN', options, anew=True)
    assert all(p.requires_grad for p in model.backbone.frn1.parameters())
    assert 'changed: backbone.norm_cfg.requires_grad: False' in records[0]
    fixed = small('RetinaNet', dict(type='FRN', requires_grad=False), options,
                  anew=True)
    assert not any(p.requires_grad for p in fixed.backbone.frn1.parameters())
    assert 'requires_grad: False -> True' not in records[1]


@pytest.mark.parametrize('norm', [dict(type='GN', affine=False),
                                  dict(type='FRN', from_bn=False)])
def test_what_freezes_nothing_is_the_classs_to_say(adjusted, norm):
    """0 in EfficientNet, which refuses the -1 of all others."""
    config = 'mmdet::efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py'
    model, changes = adjusted(config, norm, frozen_stages=2)
    assert model.backbone.frozen_stages == 0
    assert any('frozen_stages: 2 -> 0' in s for s in changes)
    model, changes = adjusted(config, norm)
    assert model.backbone.frozen_stages == 0
    assert not any('frozen_stages' in s for s in changes)
    MODELS.build(dict(model.backbone, norm_cfg=dict(type='GN', num_groups=2)))


@pytest.mark.parametrize('norm', ['BN', 'BRN', 'FRN', 'GN'])
def test_types_may_be_classes(stock, norm):
    """As in mmengine's configs in pure Python."""
    init_default_scope('mmdet')
    model = stock('RetinaNet').model.to_dict()
    plain = copy.deepcopy(model)
    for part in ('backbone', 'neck', 'bbox_head'):
        model[part]['type'] = MODELS.get(model[part]['type'])
    plan = parse_norm_cfg(norm)
    assert adjust_settings(model, plan) == adjust_settings(plain, plan)
    built = MODELS.build(dict(model, type='frn_mmdet.RetinaNet',
                              norm_cfg=norm))
    assert type(built.bbox_head).__name__ == (
        'RetinaSepBNHead' if plan.norm.batch else 'RetinaHead')


C4 = 'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py'


def test_a_checkpoint_within_a_part(adjusted, stock):
    """A C4 detector's head has a residual stage that starts from ImageNet."""
    shared = stock(C4).model.roi_head.shared_head
    assert shared.init_cfg.type == 'Pretrained'
    model, changes = adjusted(C4, dict(type='GN', affine=False))
    assert model.roi_head.shared_head.init_cfg is None
    assert not model.roi_head.shared_head.norm_eval
    assert any(s.startswith('roi_head.shared_head: open-mmlab://')
               for s in changes)
    model, changes = adjusted(C4, 'FRN')
    assert model.roi_head.shared_head == shared
    assert sum('is kept' in s for s in changes) == 2


@pytest.mark.parametrize('norm', ['FRN', 'GN', 'BN'])
def test_weights_of_a_transformer_are_none_of_its_business(norm):
    """Swin's norms stay, so its weights do, without a word."""
    backbone = dict(type='SwinTransformer', frozen_stages=1, init_cfg=dict(
        type='Pretrained', checkpoint='https://example.org/swin.pth'))
    model = dict(backbone=copy.deepcopy(backbone))
    plan = parse_norm_cfg(norm)
    set_norms(model, plan)
    assert adjust_settings(model, plan) == []
    assert model['backbone'] == backbone
    adjust_settings(model, parse_norm_cfg(dict(type=norm, from_bn=False)))
    assert model['backbone']['init_cfg'] is None


@pytest.mark.parametrize('neck, head', [
    ([dict(type='FPN', num_outs=5), dict(type='DyHead')], 'RetinaSepBNHead'),
    ([dict(type='DyHead')], 'RetinaHead'),
    (None, 'RetinaHead'),
])
def test_several_necks(neck, head):
    """Levels are those of the last neck that says how many it gives."""
    init_default_scope('mmdet')
    model = dict(neck=neck, bbox_head=dict(type='RetinaHead'))
    adjust_settings(model, parse_norm_cfg('BN'))
    assert model['bbox_head']['type'] == head
    assert model['bbox_head'].get('num_ins') == (
        5 if head == 'RetinaSepBNHead' else None)
