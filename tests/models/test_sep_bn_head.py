import copy

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.models.dense_heads import RetinaSepBNHead as MMDetHead
from mmdet.registry import MODELS
from mmengine.optim import build_optim_wrapper
from torch import nn

from frn_mmdet.models import RetinaSepBNHead

SMALL = dict(num_classes=3, num_ins=3, in_channels=8, feat_channels=8,
             stacked_convs=2, norm_cfg=dict(type='BN'))
MAPS = [torch.randn(2, 8, size, size) for size in (12, 6, 3)]


@pytest.fixture(params=['built by its name', 'copied'])
def heads(request):
    """mmdet's head and ours, of the same weights."""
    first = MMDetHead(**SMALL)
    first.init_weights()
    second = MODELS.build(dict(type='frn_mmdet.RetinaSepBNHead', **SMALL))
    second.load_state_dict(first.state_dict(), strict=True)
    if request.param == 'copied':
        second = copy.deepcopy(second)
    return first, second


def outputs(head):
    return [x for maps in head(MAPS) for x in maps]


def settle(head):
    """Let each norm have statistics, gamma and beta of its own."""
    with torch.no_grad():
        for norm in head.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(.5, 2.)
                norm.weight.uniform_(.5, 2.)
                norm.bias.normal_()
    return head.eval()


def test_it_trains_as_mmdets(heads):
    """The same parameters, losses and steps."""
    states = []
    for head in heads:
        optim = build_optim_wrapper(head, dict(
            optimizer=dict(type='SGD', lr=.1, weight_decay=.1),
            paramwise_cfg=dict(norm_decay_mult=0., bypass_duplicate=True)))
        for _ in range(2):
            optim.update_params(sum(x.square().mean() for x in outputs(head)))
        states.append(head.state_dict())
    first, second = states
    assert list(first) == list(second)
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert [n for n, _ in heads[0].named_parameters()] == [
        n for n, _ in heads[1].named_parameters()]


def test_its_norms_fold(heads):
    first, second = heads
    settle(first)
    second.load_state_dict(first.state_dict())
    second.eval()
    with torch.no_grad():
        want = outputs(first)
        got = outputs(fuse_conv_bn(second))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in second.modules())
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('options', [
    {}, {'bbox_head.type': 'RetinaSepBNHead', 'bbox_head.num_ins': 5}],
    ids=['by the switch', "the config's own"])
@pytest.mark.parametrize('norm', [
    'BN', dict(type='BN', tlu=True), 'BRN'], ids=str)
def test_a_switched_detector_folds(small, norm, options):
    """In every place: maps and head of the whole detector."""
    model = settle(small('RetinaNet', norm, options))
    assert isinstance(model.bbox_head, RetinaSepBNHead)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        want = [y for maps in model._forward(x) for y in maps]
        folded = fuse_conv_bn(copy.deepcopy(model))
        got = [y for maps in folded._forward(x) for y in maps]
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm)
                   for m in folded.modules())
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * a.std())
