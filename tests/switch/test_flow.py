"""Marks on tensors, and what is kept of an activation."""

import gc
import random
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

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


def watch(then, training=False, **modules):
    net = Net(then, **modules)
    return watch_flow(net, lambda net, flow: [
        (net(torch.randn(2, 3, 6, 5)), True)], training)


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
    (lambda net, x: torch.fft.irfft2(torch.fft.rfft2(x)).relu(), False, 8),
    (lambda net, x: torch.view_as_real(torch.fft.fft2(x)).relu(), False,
     None),
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
    assert not net.first._backward_hooks
    for module in net.modules():
        assert module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert 'forward' not in vars(module)


@pytest.mark.parametrize('then', [
    lambda net, x: x * (x.mean() > 0),
    lambda net, x: x * (x[:1].mean((1, 2, 3)) > 0),
    lambda net, x: x * (x[:1].mean((1, 2, 3), keepdim=True) > 0),
    lambda net, x: x / x.amax().clamp(min=1e-6),
    lambda net, x: x - (x.mean() - 1).abs(),
    lambda net, x: net.tlu(x) * net.tlu(x).mean().item(),
    lambda net, x: net.tlu(x).atan(),  # nothing is behind the threshold
])
def test_what_a_number_is_made_by_is_no_activation(then):
    flow = watch(then, tlu=TLU(8))
    assert [act.op for act in flow.acts if act.op != 'tlu'] == []
    assert flow.unknown == {}


@pytest.mark.parametrize('then, where', [
    (lambda net, x: x.atan(), 'Net hands what it gives to atan'),
    (lambda net, x: net.act(x), 'act hands what it gives to atan'),
    (lambda net, x: (x + 1).relu() + x.mean().atan(),
     'Net hands what it gives to atan'),
    (lambda net, x: x.floor().to(torch.int), 'Net hands what it gives to'),
    (lambda net, x: x if x.isnan().any() else x + bool(x.max() > 5),
     'Net takes a number out of what it gives'),
    (lambda net, x: x + bool((x[:1].mean((1, 2, 3)) > 5).any()),
     'Net takes a number out of what it gives'),
])
def test_what_is_not_known_is_noted(then, where):

    class Act(nn.Module):

        def forward(self, x):
            return x.atan()

    unknown = watch(then, act=Act()).unknown
    assert list(unknown) == ['norm']
    assert unknown['norm'].startswith(where)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('mode', [
    torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradients_are_there_in_training_only(training, mode):
    seen = []
    with mode():
        watch(lambda net, x: seen.append(
            (x.requires_grad, torch.is_grad_enabled())) or x, training)
    assert seen == [(training, training)]


@pytest.mark.parametrize('use_reentrant', [True, False])
@pytest.mark.parametrize('then', [
    lambda x: F.relu(x), lambda x: F.relu(x + 1), lambda x: F.relu(-x)])
def test_a_checkpoint_acts_on_what_is_given_to_it(use_reentrant, then):
    """Also when it runs a second time, on what was kept of that."""
    acts = watch(lambda net, x: net.last(checkpoint(
        then, x, use_reentrant=use_reentrant)), True,
                 last=nn.Conv2d(8, 8, 1)).acts
    assert [act.op for act in acts] == ['relu'] * (1 + use_reentrant)
    assert {act.mark.norms for act in acts} == {frozenset({'norm'})}
    assert len({act.mark.pure for act in acts}) == 1


def test_what_gradients_are_made_of_is_no_activation():
    """The backward of abs() takes signs, that of a clamp compares."""
    flow = watch(lambda net, x: checkpoint(
        net.last, F.relu(x).square(), use_reentrant=True).abs(), True,
                 last=nn.Conv2d(8, 8, 1))
    assert [act.op for act in flow.acts if act.mark] == ['relu']
    assert flow.unknown == {}


class Scale(nn.Module):
    """Its backward needs what it was given."""

    def forward(self, x):
        return x * x.sin() * torch.ones(()).requires_grad_()


def test_maps_are_not_kept_for_backward():
    alive = []

    def run(net, flow):
        output = net(torch.randn(2, 3, 6, 5))
        gc.collect()
        alive.extend(ref() is not None for ref in maps)
        assert output.grad_fn is not None
        return [(output, True)]

    maps = []

    def then(net, x):
        for layer in (nn.Sigmoid(), Scale(), nn.ReLU()):
            x = layer(x)
            maps.append(weakref.ref(x))
        return x.sum()

    watch_flow(Net(then), run, training=True)
    assert alive == [False] * 3


def generators():
    return (random.getstate(), np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist())


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('fails', [False, True])
def test_random_numbers_go_on_where_they_were(training, fails):

    def draw(net, x):
        for generate in (random.random, np.random.rand, lambda: torch.rand(3)):
            generate()
        if fails:
            raise KeyError('none')
        return x

    net = Net(draw)
    before = generators()
    try:
        watch_flow(net, lambda net, flow: [
            (net(torch.randn(2, 3, 6, 5)), True)], training)
    except KeyError:
        assert fails
    assert generators() == before
