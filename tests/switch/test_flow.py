"""Marks on tensors, and what is kept of an activation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frn_mmdet import FRN, TLU
from frn_mmdet.switch.flow import watch_flow


class Net(nn.Module):

    def __init__(self, forward, **modules):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.norm = FRN(8)
        self.then = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.then(self, self.norm(self.first(x)))


def watch(then, **modules):
    net = Net(then, **modules)
    return watch_flow(net, lambda net, flow: [
        (net(torch.randn(2, 3, 6, 5)), True)])


# On what an activation acts: the norm's own output (pure), its channels.
@pytest.mark.parametrize('then, pure, channels', [
    (lambda net, x: F.relu(x), True, 8),
    (lambda net, x: x.flatten(2).relu(), True, 8),
    (lambda net, x: x.permute(0, 2, 3, 1).relu(), True, None),
    (lambda net, x: x.transpose(1, 3).transpose(3, 1).relu(), True, 8),
    (lambda net, x: x.chunk(2, 1)[1].relu_(), True, 4),
    (lambda net, x: (x + 1).relu(), False, 8),
    (lambda net, x: (x + x.mean()).relu(), False, 8),
    (lambda net, x: torch.cat([x, x], 1).relu(), False, 16),
    (lambda net, x: torch.stack([x, x]).relu(), False, None),
    (lambda net, x: F.interpolate(x, scale_factor=2).relu(), False, 8),
    (lambda net, x: x.mul_(2).relu(), False, 8),
    (lambda net, x: x.new_zeros(x.shape).copy_(x).relu(), False, 8),
])
def test_what_an_activation_acts_on(then, pure, channels):
    act, = watch(then).acts
    assert act.mark.norms == {'norm'}
    assert (act.mark.pure, act.channels) == (pure, channels)


@pytest.mark.parametrize('then', [
    lambda net, x: F.relu(net.last(x)),
    lambda net, x: F.relu(x.flatten(2) @ torch.ones(30, 3)),
    lambda net, x: F.relu(torch.zeros_like(x)),
    lambda net, x: F.relu(F.group_norm(x, 2)),
    lambda net, x: F.normalize(x),  # clamps a magnitude
    lambda net, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),  # a gate
    lambda net, x: x.argmax(1).clamp(min=0),
])
def test_what_is_another_map_is_not_the_norms(then):
    acts = watch(then, last=nn.Conv2d(8, 8, 1)).acts
    assert [act for act in acts if act.mark is not None] == []


def test_what_has_been_activated_is_watched_on():
    """A ReLU behind a TLU; but not a sigmoid, which stops no threshold."""
    acts = watch(lambda net, x: net.tlu(x).relu() + net.tlu(x).sigmoid(),
                 tlu=TLU(8)).acts
    assert [act.op for act in acts] == ['tlu', 'relu', 'tlu']
    assert acts[1].mark.norms == set()
    assert acts[1].mark.done == {'norm'}


@pytest.mark.parametrize('then, after, readers', [
    (lambda net, x: net.last(net.act(x)), None, {'last'}),
    (lambda net, x: net.last(net.act(x)) + net.other(net.act(x)), None,
     {'last'}),
    (lambda net, x: net.act(x), ('', None, None), set()),
    (lambda net, x: [x, net.act(x)], ('', 1, 2), set()),
    (lambda net, x: net.act(x) * 2, None, {None}),
    (lambda net, x: net.last(net.act(x)[:, :8]), None, {None}),
    (lambda net, x: net.several(net.act(x)), None, {'several.0'}),
])
def test_where_it_goes(then, after, readers):
    conv = nn.Conv2d(8, 8, 1)
    flow = watch(then, act=nn.ReLU(), last=conv, other=nn.Conv2d(8, 8, 1),
                 several=nn.Sequential(nn.Conv2d(8, 8, 1)))
    assert (flow.acts[0].after, flow.acts[0].readers) == (after, readers)


def test_use_beside_the_activation():
    assert watch(lambda net, x: x.relu()).used == set()
    assert watch(lambda net, x: x.relu() + x).used == {'norm'}
    assert watch(lambda net, x: [x.relu(), x]).used == {'norm'}
    assert watch(lambda net, x: net.last(x), last=FRN(8)).used == {
        'norm', 'last'}


def test_hooks_and_modes_are_as_before_also_after_an_error():
    net = Net(lambda net, x: 1 / 0).train()
    with pytest.raises(ZeroDivisionError):
        watch_flow(net, lambda net, flow: net(torch.randn(2, 3, 6, 5)))
    for module in net.modules():
        assert module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert 'forward' not in vars(module)
