"""What mmengine's Runner does to a model, by a key of a config."""

import copy

import pytest
import torch
from mmengine.model.efficient_conv_bn_eval import (
    turn_on_efficient_conv_bn_eval,
)
from mmengine.runner.activation_checkpointing import (
    turn_on_activation_checkpointing,
)
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from frn_mmdet import FRN
from frn_mmdet.errors import ConfigError
from frn_mmdet.layers import BRN

NORMS = ['FRN', 'BRN', 'LN', dict(type='GN', num_groups=4),
         dict(type='GFRN', num_groups=4), 'LFRN', dict(type='FRN', ws=True),
         dict(type='GN', num_groups=4, ws=True, tlu=True)]


def feats(model, x):
    with torch.no_grad():
        return model.backbone(x)


def settle(model):
    """As after some training: statistics and parameters all differ."""
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            norm.running_mean.normal_(0, .1)
            norm.running_var.uniform_(.5, 2)
            norm.num_batches_tracked.fill_(20000)
        if isinstance(getattr(norm, 'tau', None), nn.Parameter):
            nn.init.normal_(norm.tau, 0, .1)
    return model


@pytest.mark.parametrize('norm', NORMS, ids=str)
def test_efficient_conv_bn_eval(small, norm):
    """It is turned on, then a checkpoint is loaded: see Runner.train()."""
    model, other = (settle(small('RetinaNet', norm, seed=s)) for s in (0, 1))
    turn_on_efficient_conv_bn_eval(model, 'backbone')
    load_state_dict(model, copy.deepcopy(other.state_dict()))
    x = torch.randn(2, 3, 64, 64)
    for mode in (True, False, True):
        model.train(mode)
        other.train(mode)
        for a, b in zip(feats(model, x), feats(other, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for a, b in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_it_follows_a_layer_that_loads_a_reference(small):
    """A BN checkpoint gives an FRN statistics that it had not when traced."""
    bn = settle(small('RetinaNet', dict(type='BN', parts='backbone')))
    model = small('RetinaNet', dict(type='FRN', parts='backbone'), seed=1)
    turn_on_efficient_conv_bn_eval(model, 'backbone')
    other = small('RetinaNet', dict(type='FRN', parts='backbone'), seed=2)
    for one in (model, other):
        load_state_dict(one.backbone, bn.backbone.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert any(isinstance(m, FRN) and m.ref_mean is not None
               for m in model.modules())
    for a, b in zip(feats(model, x), feats(other, x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('norm, words', [
    (dict(type='BN', ws=True), 'backbone.conv1 has standardized weights'),
    (dict(type='BRN', ws=True), 'backbone.conv1 has standardized weights'),
    (dict(type='BN', tlu=True), 'conv2 has a TLU before it'),
    (dict(type='BRN', tlu=True), 'conv2 has a TLU before it'),
], ids=str)
def test_what_it_would_get_wrong_is_refused(small, norm, words):
    model = small('RetinaNet', norm)
    model.train()
    turn_on_efficient_conv_bn_eval(model, 'backbone')
    with pytest.raises(ConfigError, match=f'efficient_conv_bn_eval.*{words}'):
        model.train()


@pytest.mark.parametrize('way', ['with_cp', 'activation_checkpointing'])
def test_brn_counts_a_checkpointed_step_once(small, way):
    options = {'backbone.with_cp': True} if way == 'with_cp' else {}
    models = [settle(small('RetinaNet', 'BRN', more)).train()
              for more in ({}, options)]
    if way == 'activation_checkpointing':
        turn_on_activation_checkpointing(
            models[1], [f'backbone.layer{i}' for i in (1, 2, 3, 4)])
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(2, 3, 64, 64)
    for model in models:
        sum(y.square().mean() for y in model.backbone(x)).backward()
    assert {int(m.num_batches_tracked) for m in models[1].backbone.modules()
            if isinstance(m, BRN)} == {20001}
    first, second = (m.backbone for m in models)
    for a, b in zip(first.buffers(), second.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
