"""A copy that runs as the model does, whatever is in it."""

import random
import threading

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from frn_mmdet.switch.light_copy import NoProducts, light_copy
from frn_mmdet.switch.operations import PRODUCTS, name_of


def cases(number):
    """Convolutions of all kinds, and inputs that fit most of them."""
    choose = random.Random(0).choice
    for _ in range(number):
        dims, transposed = choose([1, 2, 3]), choose([False, False, True])
        groups = choose([1, 1, 2, 4])
        stride, padding, dilation, kernel = (
            [choose(values) for _ in range(dims)] for values in (
                [1, 2, 3], [0, 1, 2], [1, 2], [1, 2, 3, 5]))
        kwargs = dict(stride=stride, padding=padding, dilation=dilation,
                      groups=groups, bias=choose([True, False]))
        if transposed:
            kwargs['output_padding'] = [
                choose(range(max(pair)))
                for pair in zip(stride, dilation, strict=True)]
        inputs, outputs = groups * choose([1, 2, 3]), groups * choose([1, 2])
        layer = getattr(
            nn, f'Conv{"Transpose" if transposed else ""}{dims}d')(
                inputs, outputs, kernel, **kwargs)
        x = torch.randn(
            choose([0, 1, 2]), inputs + choose([0] * 9 + [1]),
            *[choose([3, 7, 8]) for _ in range(dims)])
        yield layer, x


def run(layer, x):
    try:
        return layer(x)
    except RuntimeError as error:
        return str(error)


def test_a_convolution_gives_zeros_of_its_shape():
    """Or the same words, where it does not fit."""
    shapes = errors = 0
    for layer, x in cases(200):
        expected = run(layer, x)
        copied, zeros = light_copy(layer)
        with NoProducts(zeros):
            result = run(copied, x)
        if isinstance(expected, str):
            assert result == expected
            errors += 1
        else:
            assert torch.equal(result, torch.zeros_like(expected))
            shapes += 1
    assert shapes > 100
    assert errors > 10


@pytest.mark.parametrize('shape', [(5, 8), (2, 3, 8), (0, 8), (8, )])
@pytest.mark.parametrize('bias', [True, False])
def test_so_does_a_linear_layer(shape, bias):
    layer = nn.Linear(8, 6, bias=bias)
    copied, zeros = light_copy(layer)
    x = torch.randn(shape)
    with NoProducts(zeros):
        assert torch.equal(copied(x), torch.zeros_like(layer(x)))


def test_what_is_no_weight_is_computed():
    model = nn.Conv2d(3, 4, 1)
    copied, zeros = light_copy(model)
    x = torch.randn(1, 3, 4, 4)
    with NoProducts(zeros):
        for result in (
                torch.conv2d(x, model.weight, model.bias),
                torch.conv2d(x, copied.weight, model.bias)):  # the bias only
            assert result.any()


class Seen(TorchDispatchMode):
    """The operations that are computed."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(name_of(func))
        return func(*args, **kwargs or {})


def test_no_product_with_a_weight_is_computed(small):
    copied, zeros = light_copy(small('MaskRCNN', None))
    with Seen() as seen, NoProducts(zeros):
        feats = copied.extract_feat(torch.ones(1, 3, 64, 64))
        copied.rpn_head(feats)
        copied.roi_head.bbox_head(torch.ones(2, 16, 7, 7))
    assert 'new_zeros' in seen.names
    assert not seen.names & PRODUCTS


def storage(model):
    return {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
            for p in model.parameters()}


def test_the_parameters_share_the_memory_of_the_longest(small):
    model = small('MaskRCNN', None)
    model.backbone.conv1.double()
    copied, _ = light_copy(model)
    assert not storage(copied).keys() & storage(model).keys()
    assert sum(storage(copied).values()) == max(
        p.numel() for p in model.parameters()) * 4 + (
            model.backbone.conv1.weight.numel() * 8)
    for (name, p), (other_name, other) in zip(
            model.named_parameters(), copied.named_parameters(), strict=True):
        assert name == other_name
        assert (p.shape, p.dtype, p.requires_grad) == (
            other.shape, other.dtype, other.requires_grad)
        assert not other.any()


class Counts(nn.Module):
    """Has what cannot be copied, and changes when it runs."""

    def __init__(self, what):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.same = self.conv
        self.what = what
        self.nested = dict(what=what, owner=[self])
        self.runs = 0
        self.register_buffer('steps', torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        self.steps += 1
        self.nested['owner'][0].runs += 1
        return self.conv(x)


class WillNot(nn.Linear):

    def __deepcopy__(self, memo):
        return self


def computed():
    return torch.ones(2, requires_grad=True) * 2  # no leaf


@pytest.mark.parametrize('what', [
    threading.Lock, computed, lambda: (n for n in 'ab'), lambda: None,
    lambda: WillNot(2, 2)])
def test_whatever_a_module_has_its_copy_is_another(what):
    model = nn.Sequential(Counts(what()))
    copied, _ = light_copy(model)
    assert not set(model.modules()) & set(copied.modules())
    assert copied[0].same is copied[0].conv
    assert copied[0].nested['owner'][0] is copied[0]
    copied(torch.ones(1, 3, 4, 4))
    assert (model[0].runs, copied[0].runs) == (0, 2)
    assert (model[0].steps, copied[0].steps) == (0, 1)


def test_nothing_stays_on_the_meta_device():
    class Anchors:

        def __init__(self):
            self.base = [torch.ones(4)]

    with torch.device('meta'):
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        model.anchors = Anchors()
        model.scale = torch.ones(3)
    copied, _ = light_copy(model)
    for x in (*copied.state_dict().values(), copied.scale,
              copied.anchors.base[0]):
        assert x.device.type == 'cpu'


def test_a_lazy_layer_can_be_copied():
    copied, _ = light_copy(nn.Sequential(nn.LazyConv2d(8, 1), nn.Conv2d(
        8, 8, 1)))
    assert copied(torch.ones(1, 3, 4, 4)).shape == (1, 8, 4, 4)
