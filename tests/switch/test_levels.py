"""A batch norm for each level, where a head or a neck has one for all."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmdet.testing import demo_mm_inputs
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage, revert_sync_batchnorm
from mmengine.runner import load_state_dict
from torch import nn

from frn_mmdet import ConfigError, norm_sites
from frn_mmdet.layers import BRN, TLU, LevelNorms
from frn_mmdet.switch.apply import apply_plan
from frn_mmdet.switch.norms import parse_norm_cfg

GFL = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
HEAD = {'bbox_head.in_channels': 16, 'bbox_head.feat_channels': 16,
        'bbox_head.stacked_convs': 1}


@pytest.fixture
def dense(small, build):
    """dense(name, norm_cfg): an FCOS, or another with such a head, small."""

    def _dense(name='FCOS', norm_cfg='BN', options=None, seed=0):
        if name == 'FCOS':
            return small(name, norm_cfg, HEAD | (options or {}), seed)
        return build(name, norm_cfg, {
            'backbone.depth': 18, 'backbone.base_channels': 8,
            'backbone.init_cfg': None, 'neck.in_channels': [8, 16, 32, 64],
            'neck.out_channels': 16} | HEAD | (options or {}), seed)

    return _dense


def of_mmdet(dense, name='FCOS'):
    """mmdet's own, with one BN for all levels."""
    bn = dict(type='BN')
    return dense(name, None, {'backbone.frozen_stages': -1,
                              'backbone.norm_eval': False,
                              'neck.norm_cfg': bn, 'bbox_head.norm_cfg': bn})


def images(size=128, batch=4):
    torch.manual_seed(0)
    coarse = torch.randn(batch, 3, size // 16, size // 16)
    return nn.functional.interpolate(coarse, size=(size, size),
                                     mode='bilinear')


def spread_out(model):
    """Weights of which levels get maps that differ, as trained ones do."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter)
    return model


@torch.no_grad()
def scores(model, x):
    return model.bbox_head(model.extract_feat(x))[0]


def settle(model, x, steps=30):
    """Let running statistics become those of one batch."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = .5
    model.train()
    for _ in range(steps):
        scores(model, x)
    return model


@pytest.mark.parametrize('name', ['FCOS', GFL], ids=['FCOS', 'GFL'])
def test_class_scores_of_training_and_test_agree(dense, name):
    """At P3, whose statistics are over 1024 places; 2.5 off with one BN."""
    x, gaps = images(), []
    for model in (dense(name), of_mmdet(dense, name)):
        settle(spread_out(model), x)
        train = scores(model, x)[0]
        gaps.append((train - scores(model.eval(), x)[0]).abs().max().item())
    assert gaps[0] < .2 < 1 < gaps[1]


@pytest.mark.parametrize('norm', ['BN', 'SyncBN', 'BRN'])
def test_each_tower_has_a_norm_a_level(dense, norm):
    model = dense(norm_cfg=norm)
    for tower in (model.bbox_head.cls_convs, model.bbox_head.reg_convs):
        assert isinstance(tower[0].norm, LevelNorms)
        assert isinstance(tower[0].conv, nn.Conv2d)
        assert len(tower[0].norm) == 5
    assert len(model.switch_outcome.levels) == 2
    sites = [site for site in norm_sites(model)
             if site.path.startswith('bbox_head.')]
    assert [(site.norm, site.activation) for site in sites] == [
        (norm, 'ReLU')] * 10
    assert sites[0].path.endswith('.0')


@pytest.mark.parametrize('norm', ['GN', 'FRN', 'IN', 'LN'])
def test_a_norm_of_one_image_stays_shared(dense, norm):
    if norm == 'GN':
        norm = dict(type='GN', num_groups=4)
    model = dense(norm_cfg=norm)
    assert not any(isinstance(m, LevelNorms) for m in model.modules())


@pytest.mark.parametrize('name, norm', [
    ('FCOS', dict(type='BN', parts='backbone')),
    ('MaskRCNN', 'BN'),  # a RoI head's maps are of one size
    ('RetinaNet', 'BN')])  # mmdet's RetinaSepBNHead
def test_nothing_else_gets_them(small, name, norm):
    options = {'bbox_head.feat_channels': 32} if name == 'FCOS' else {}
    model = small(name, norm, options)
    assert not any(isinstance(m, LevelNorms) for m in model.modules())
    assert not model.switch_outcome.levels
    assert not model.switch_outcome.shared


@pytest.mark.slow
def test_a_neck_whose_levels_share_a_norm(build):
    model = build('mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py', 'BN', {
        'backbone.depth': 18, 'backbone.base_channels': 8,
        'backbone.init_cfg': None,
        'neck': [dict(type='FPN', in_channels=[8, 16, 32, 64],
                      out_channels=16, num_outs=5),
                 dict(type='DyHead', in_channels=16, out_channels=16,
                      num_blocks=1)],
        'bbox_head.in_channels': 16})
    assert {(one.path.rpartition('.')[0].rpartition('.')[2], one.levels)
            for one in model.switch_outcome.levels} == {
        ('spatial_conv_high', 4), ('spatial_conv_mid', 5),
        ('spatial_conv_low', 4)}


def test_it_is_said(small):
    records = []
    logger = MMLogger.get_instance('test_levels')
    logger.handlers[0].emit = lambda r: records.append(r.getMessage())
    small('FCOS', 'BN', HEAD, anew=True)
    record, = (r for r in records if r.startswith('model.norm_cfg'))
    assert ('note: bbox_head: one BN a pyramid level, 5, in place of one for '
            'all of them, at 2 places') in record
    assert 'bypass_duplicate' not in record
    assert '  head: 10 BN' in record


def test_a_training_step(dense, losses):
    model = dense()
    losses(model.train(), size=256).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert {int(norm.num_batches_tracked) for norm
            in model.bbox_head.cls_convs[0].bn} == {1}


def trained(model, x):
    model.train()
    for step in range(2):
        scores(model, x.roll(step, 0) + step)
    return model


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict],
                         ids=['torch', 'mmengine'])
def test_a_checkpoint_of_one_bn_for_all(dense, load):
    x = images()
    one = trained(spread_out(of_mmdet(dense)), x).eval()
    model = dense(seed=1)
    load(model, one.state_dict(), strict=True)
    for a, b in zip(scores(model.eval(), x), scores(one, x), strict=True):
        assert torch.equal(a, b)


def test_its_own_checkpoint(dense):
    x = images()
    one = trained(dense(), x).eval()
    assert 'bbox_head.cls_convs.0.bn.4.running_var' in one.state_dict()
    model = dense(seed=1).eval()
    model.load_state_dict(one.state_dict())
    for a, b in zip(scores(model, x), scores(one, x), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_fewer_levels_is_refused(dense):
    state = dense().state_dict()
    state = type(state)((k, v) for k, v in state.items() if '.bn.4.' not in k)
    with pytest.raises(ConfigError, match=r'at bbox_head.cls_convs.0.bn.4'):
        dense().load_state_dict(state)


@pytest.mark.parametrize('norm, found', [
    ('GN', 'bbox_head.cls_convs.0.bn.0.*has GN'),
    ('BRN', 'bbox_head.cls_convs.0.bn.0.*has BRN')])
def test_a_checkpoint_of_another_norm_is_refused(dense, norm, found):
    value = dict(type='GN', num_groups=4) if norm == 'GN' else norm
    state = dense(norm_cfg=dict(parts='head', **(
        value if norm == 'GN' else dict(type=norm)))).state_dict()
    bare = dict(state)  # without what it says of itself
    with pytest.raises(ConfigError, match=found):
        dense(norm_cfg=dict(type='BN', parts='head')).load_state_dict(bare)
    with pytest.raises(ConfigError, match=f'has {norm}'):
        dense(norm_cfg=dict(type='BN', parts='head')).load_state_dict(state)


@pytest.mark.parametrize('levels', [False, True])
def test_brn_goes_on_from_bn(dense, levels):
    """Of one for all, or one a level."""
    x = images()
    bn = trained(spread_out(dense() if levels else of_mmdet(dense)), x).eval()
    model = dense(norm_cfg='BRN', seed=1)
    load_state_dict(model, bn.state_dict(), strict=True)
    norms = model.bbox_head.cls_convs[0].norm
    assert all(type(norm) is BRN and int(norm.num_batches_tracked) == 40000
               for norm in norms)
    assert torch.equal(norms[0].running_mean, norms[1].running_mean) is (
        not levels)
    for a, b in zip(scores(model.eval(), x), scores(bn, x), strict=True):
        torch.testing.assert_close(a, b)


def test_a_tlu_behind_is_shared(dense, losses):
    """As an FRN head's thresholds are."""
    model = dense(norm_cfg=dict(type='BN', tlu=True))
    block = model.bbox_head.cls_convs[0]
    assert isinstance(block.norm, LevelNorms)
    assert isinstance(block.activate, TLU)
    losses(model.train(), size=256).backward()
    assert block.activate.tau.grad.abs().sum() > 0
    assert {site.activation for site in norm_sites(model)
            if site.path.startswith('bbox_head.')} == {'TLU'}


def test_standardized_weights(dense):
    model = dense(norm_cfg=dict(type='BN', ws=True))
    assert isinstance(model.bbox_head.cls_convs[0].norm, LevelNorms)
    assert all(site.ws for site in norm_sites(model)
               if site.path.startswith('bbox_head.'))


def test_what_mmengine_makes_of_it(dense):
    """An average of weights, one process for several, a folded BN."""
    x = images()
    model = trained(spread_out(dense()), x).eval()
    expected = scores(model, x)
    average = ExponentialMovingAverage(model)
    assert all(map(torch.equal, scores(average.module.eval(), x), expected))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    back = revert_sync_batchnorm(synced).eval()
    assert all(map(torch.equal, scores(back, x), expected))
    folded = fuse_conv_bn(copy.deepcopy(model))
    assert isinstance(folded.backbone.bn1, nn.Identity)
    for a, b in zip(scores(folded, x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_images_of_several_shapes(dense):
    """Each shape is a pass of its own."""
    model = trained(spread_out(dense()), images()).eval()
    together = demo_mm_inputs(2, [(3, 128, 128), (3, 128, 192)])
    data = model.data_preprocessor(copy.deepcopy(together), False)
    with torch.no_grad():
        both = model.predict(*data.values())
        for i, result in enumerate(both):
            one = {key: value[i:i + 1] for key, value in together.items()}
            alone, = model.predict(
                *model.data_preprocessor(one, False).values())
            torch.testing.assert_close(
                alone.pred_instances.scores, result.pred_instances.scores)


class Detector(nn.Module):
    """Of a stranger's: a head that runs by itself, and a backbone."""

    def __init__(self, head):
        super().__init__()
        self.backbone = ConvModule(3, 4, 3, norm_cfg=dict(type='BN'))
        self.neck = TwoTowers(4, 4, 3, norm_cfg=dict(type='BN'))
        self.bbox_head = head(4, 4, 3, norm_cfg=dict(type='BN'))

    def forward(self, x):
        x = self.backbone(x), self.backbone(x[..., ::2, ::2])
        return [self.bbox_head(self.neck(each)[0]) for each in x]


class TwoTowers(nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        self.tower = ConvModule(*args, **kwargs)

    def forward(self, x):
        y = self.tower.forward(x)  # which no hook sees
        return y, self.tower.forward(y[..., ::2, ::2])


def test_a_pass_is_found_whatever_calls_it():
    model = Detector(TwoTowers)
    outcome = apply_plan(model, parse_norm_cfg('BN'))
    assert [(one.host, one.levels) for one in outcome.levels] == [
        ('bbox_head', 2), ('neck', 2)]
    assert isinstance(model.bbox_head.tower.bn, LevelNorms)
    assert isinstance(model.backbone.bn, nn.BatchNorm2d)
    model(torch.randn(2, 3, 64, 64))
    assert [int(n.num_batches_tracked) for n in model.bbox_head.tower.bn] == [
        2, 2]


def test_levels_that_only_the_detector_has_stay():
    """Its loss and its predictions are other ways than its forward."""
    outcome = apply_plan(Detector(ConvModule), parse_norm_cfg('BN'))
    assert [one.host for one in outcome.levels] == ['neck']
    assert outcome.shared == ['bbox_head.bn']
