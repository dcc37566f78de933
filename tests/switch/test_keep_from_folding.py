import copy

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from torch import nn

from frn_mmdet.switch.flow import watch_flow
from frn_mmdet.switch.keep_from_folding import keep_from_folding


class OwnProduct(nn.Module):
    """As TOOD's head: the convolution's weight in a product of its own."""

    def __init__(self):
        super().__init__()
        self.reduce = ConvModule(4, 8, 1, norm_cfg=dict(type='BN'))

    def forward(self, x):
        weight = self.reduce.conv.weight.flatten(1) * 2
        y = torch.einsum('oc,nchw->nohw', weight, x)
        return self.reduce.activate(self.reduce.norm(y))


class Levels(nn.Module):
    """One convolution for two maps, with a norm for each, as RTMDet's head."""

    def __init__(self):
        super().__init__()
        norm = dict(type='BN')
        self.first = ConvModule(4, 8, 3, norm_cfg=norm)
        self.second = ConvModule(4, 8, 3, norm_cfg=norm)
        self.second.conv = self.first.conv

    def forward(self, x):
        return self.first(x) + self.second(x + 1)


MODULES = {
    'in its order': lambda: ConvModule(4, 8, 3, norm_cfg=dict(type='BN')),
    'its weight alone': OwnProduct,
    'shared': Levels,
    'standardized': lambda: ConvModule(
        4, 8, 3, norm_cfg=dict(type='BN'), conv_cfg=dict(type='ConvWS')),
    'norm first': lambda: ConvModule(
        4, 8, 3, norm_cfg=dict(type='BN'), order=('norm', 'act', 'conv')),
    'act first': lambda: ConvModule(
        4, 8, 3, norm_cfg=dict(type='BN'), act_cfg=dict(type='Sigmoid'),
        order=('conv', 'act', 'norm')),
}


def settled(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.normal_()
                norm.running_var.uniform_(.5, 2.)
                norm.weight.uniform_(.5, 2.)
                norm.bias.normal_()
    return module.eval()


@pytest.mark.parametrize('name', MODULES)
def test_what_is_folded_is_right(name):
    module = settled(MODULES[name]())
    x = torch.randn(2, 4, 9, 9)
    want, keys = module(x), set(module.state_dict())
    flow = watch_flow(module, lambda m, _: [(m(x), True)])
    assert keep_from_folding(module, flow) == []
    assert set(module.state_dict()) == keys
    with torch.no_grad():
        torch.testing.assert_close(module(x), want, rtol=0, atol=0)
        folded = fuse_conv_bn(copy.deepcopy(module))
        torch.testing.assert_close(folded(x), want, rtol=1e-4, atol=1e-5)
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert bool(norms) == (name != 'in its order')


def test_an_order_that_runs_is_left_and_named():
    module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid(),
                           nn.BatchNorm2d(4))
    x = torch.randn(2, 4, 9, 9)
    flow = watch_flow(module, lambda m, _: [(m(x), True)])
    assert keep_from_folding(module, flow) == ['2']
    assert list(dict(module.named_children())) == ['0', '1', '2']


@pytest.mark.parametrize('options', [
    {}, {'bbox_head.type': 'RetinaSepBNHead', 'bbox_head.num_ins': 5}],
    ids=['by the switch', "the config's own"])
@pytest.mark.parametrize('norm', [
    'BN', dict(type='BN', tlu=True), 'BRN'], ids=str)
def test_a_norm_per_level_folds(small, norm, options):
    """In every place: maps and head of the whole detector."""
    model = settled(small('RetinaNet', norm, options))
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        want = [y for maps in model._forward(x) for y in maps]
        folded = fuse_conv_bn(copy.deepcopy(model))
        got = [y for maps in folded._forward(x) for y in maps]
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm)
                   for m in folded.backbone.modules())
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * a.std())


def test_tood_folds(build):
    """Its own norm is GN; under BN both of its products have one."""
    model = settled(build('mmdet::tood/tood_r50_fpn_1x_coco.py', 'BN', {
        'backbone.init_cfg': None, 'backbone.depth': 18,
        'neck.in_channels': [64, 128, 256, 512]}))
    feats = [torch.randn(1, 256, size, size) for size in (16, 8, 4, 2, 1)]
    with torch.no_grad():
        want = model.bbox_head(feats)
        got = fuse_conv_bn(copy.deepcopy(model)).bbox_head(feats)
    for a, b in zip(sum(map(list, want), []), sum(map(list, got), []),
                    strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * a.std())
