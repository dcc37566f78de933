"""Norms that start from a BN's statistics: the formula, and state dicts."""

import copy
import pickle

import pytest
import torch
from mmcv.cnn import build_norm_layer, is_norm
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn
from torch.nn import functional as F

from frn_mmdet import FRN, GFRN, GN, IN, LFRN, LN, use_kernel
from frn_mmdet.errors import ConfigError

F64 = torch.float64
CHANNELS = 8
# By name: (groups, whether the mean is subtracted, layer of a share)
NORMS = dict(
    FRN=(8, False, lambda **kw: FRN(CHANNELS, **kw)),
    GFRN=(4, False, lambda **kw: GFRN(CHANNELS, 4, **kw)),
    LFRN=(1, False, lambda **kw: LFRN(CHANNELS, **kw)),
    GN=(4, True, lambda **kw: GN(CHANNELS, 4, **kw)),
    IN=(8, True, lambda **kw: IN(CHANNELS, affine=True, **kw)),
    LN=(1, True, lambda **kw: LN(CHANNELS, **kw)),
)
OF_TORCH = dict(
    GN=lambda: nn.GroupNorm(4, CHANNELS),
    IN=lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    LN=lambda: nn.GroupNorm(1, CHANNELS))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=NORMS)
def name(request):
    return request.param


@pytest.fixture(params=['plain', 'native'])
def kernel(request):
    """Each of the two ways on a CPU."""
    with use_kernel(request.param):
        yield


def bn_of(channels=CHANNELS, seed=0):
    """A BN in test mode, of random statistics and parameters."""
    generator = torch.Generator().manual_seed(seed)
    bn = nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        for value in (bn.weight, bn.bias, bn.running_mean):
            value.normal_(generator=generator)
        bn.running_var.uniform_(.2, 3, generator=generator)
    return bn


def started(name, share, bn=None, **kwargs):
    """A layer that goes on from a BN, as the switch would make it."""
    bn = bn or bn_of()
    layer = NORMS[name][2](**kwargs)
    state = layer.state_from_bn(bn.running_mean, bn.running_var + bn.eps,
                                share)
    layer.load_state_dict(dict(state, weight=bn.weight, bias=bn.bias))
    return layer


def formula(name, x, layer, share):
    """The docstring's equation, element by element, in float64."""
    groups, centred, _ = NORMS[name]
    x, mean, var, gamma, beta = (
        value.detach().to(F64) for value in (
            x, layer.ref_mean, layer.ref_var, layer.weight, layer.bias))
    y, size = torch.empty_like(x), x.shape[1] // groups
    for image, out in zip(x, y, strict=True):
        x_ref = torch.stack([(image[c] - mean[c]) / var[c].sqrt()
                             for c in range(len(image))])
        for first in range(0, len(image), size):
            part = x_ref[first:first + size]
            m = part.mean() if centred else 0.
            v = ((part - m)**2).mean()
            root = (share * (v + layer.eps) + 1 - share)**.5
            for c in range(first, first + size):
                out[c] = gamma[c] * (x_ref[c] - share * m) / root + beta[c]
    return y


def error_of(value, wanted):
    return ((value.double() - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize('share', [1., .5, 1 / 11, 1e-3, 0.])
@pytest.mark.parametrize('size', [(9, 7), (1, 1), (40, 50)])
def test_the_formula(kernel, name, share, size):
    layer = started(name, share)
    x = torch.randn(3, CHANNELS, *size) * 2 + 1
    for map_ in (x, x.contiguous(memory_format=torch.channels_last),
                 x.flip(3).transpose(2, 3).contiguous().transpose(2, 3)):
        wanted = formula(name, map_, layer, share)
        # Of one element, or two that happen to be near, x - m is about 0, and
        # what is left is multiplied by up to 1 / sqrt(eps).
        few = size == (1, 1)
        assert error_of(layer(map_), wanted) < (1e-3 if few else 1e-5)
    double = started(name, share).double()
    assert error_of(double(x.double()), formula(
        name, x, double, double.share)) < 1e-10


@pytest.mark.parametrize('size', [(6, ), (2, 3, 2)])
@pytest.mark.parametrize('name', ['FRN', 'GFRN', 'LFRN', 'GN', 'LN'])
def test_lines_and_volumes(name, size):
    layer = started(name, .3)
    x = torch.randn(2, CHANNELS, *size)
    assert error_of(layer(x), formula(name, x, layer, layer.share)) < 1e-5


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('name', [name for name in NORMS if name != 'FRN'])
def test_a_map_that_is_far_from_the_reference(kernel, name, last):
    """100 deviations off, the variance is still that of the map."""
    layer = started(name, .9)
    nn.init.zeros_(layer.bias)
    layer.ref_mean.zero_()
    layer.ref_var.fill_(1.)
    x = torch.randn(2, CHANNELS, 40, 50) + 100
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    wide = x.double().requires_grad_()
    dy = torch.randn_like(x)
    y, wanted = layer(leaf), copy.deepcopy(layer).double()(wide)
    y.backward(dy)
    wanted.backward(dy.double())
    assert error_of(y, wanted.detach()) < 2e-6
    assert error_of(leaf.grad, wide.grad) < 2e-5


def test_a_mean_that_is_large_beside_the_deviation(kernel, name):
    """Neither cancels: not within a row, and not between those of a group."""
    bn = bn_of()
    bn.running_mean.fill_(30.)
    layer = started(name, .5, bn)
    x = torch.randn(2, CHANNELS, 64, 48) + 30
    for map_ in (x, x.contiguous(memory_format=torch.channels_last)):
        wanted = formula(name, map_, layer, .5)
        assert error_of(layer(map_), wanted) < 2e-5


@pytest.mark.parametrize('share', [1., .3, 0.])
def test_gradients(kernel, name, share):
    layer = started(name, share).double()
    x = torch.randn(2, CHANNELS, 3, 4, dtype=F64)
    inputs = [value.detach().clone().requires_grad_()
              for value in (x, layer.weight, layer.bias)]

    def run(x, weight, bias):
        return torch.func.functional_call(
            layer, dict(weight=weight, bias=bias), x)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize('last', [False, True])
def test_gradients_of_a_large_map(kernel, name, last):
    """In float32, of rows of many blocks, against autograd in float64."""
    layer = started(name, .3)
    x = torch.randn(2, CHANNELS, 160, 120) * 2 + 1
    dy = torch.randn_like(x)
    if last:
        x, dy = (value.contiguous(memory_format=torch.channels_last)
                 for value in (x, dy))
    double = copy.deepcopy(layer).double()
    own, wide = x.requires_grad_(), x.detach().double().requires_grad_()
    layer(own).backward(dy)
    groups, centred, _ = NORMS[name]
    x_ref = (wide - double.ref_mean.view(-1, 1, 1)) / double.ref_var.view(
        -1, 1, 1)**.5
    rows = x_ref.reshape(2, groups, -1)
    m = rows.mean(2, keepdim=True) * centred
    v = ((rows - m)**2).mean(2, keepdim=True)
    s = double.share
    y = ((rows - s * m) / (s * (v + double.eps) + 1 - s)**.5).reshape(x.shape)
    y = y * double.weight.view(-1, 1, 1) + double.bias.view(-1, 1, 1)
    y.backward(dy.double())
    assert own.grad.is_contiguous(
        memory_format=torch.channels_last) is last
    for value, wanted in ((own.grad, wide.grad),
                          (layer.weight.grad, double.weight.grad),
                          (layer.bias.grad, double.bias.grad)):
        assert error_of(value, wanted) < 1e-5


def test_a_gradient_that_is_one_number(name):
    """As ``sum().backward()`` gives: its strides are 0."""
    layer, x = started(name, .3), torch.randn(2, CHANNELS, 5, 6)
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(own).sum().backward()
    layer(other).backward(torch.ones_like(x))
    torch.testing.assert_close(own.grad, other.grad)


def test_a_share_of_0_is_bn_in_test_mode(name):
    bn = bn_of()
    layer = started(name, 0., bn)
    x = torch.randn(4, CHANNELS, 12, 10) * 3 + 1
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, wanted = layer(own), bn(other)
    assert error_of(y, wanted) < 1e-6
    dy = torch.randn_like(x)
    y.backward(dy)
    wanted.backward(dy)
    assert error_of(own.grad, other.grad) < 1e-6
    assert error_of(layer.weight.grad, bn.weight.grad) < 1e-5
    assert error_of(layer.bias.grad, bn.bias.grad) < 1e-5


@pytest.mark.parametrize('name', OF_TORCH)
def test_a_share_of_1_is_torchs_norm_of_the_standardized_map(name):
    layer = started(name, 1.)
    x = torch.randn(2, CHANNELS, 9, 7)
    x_ref = (x - layer.ref_mean.view(-1, 1, 1)) / layer.ref_var.view(
        -1, 1, 1)**.5
    groups = NORMS[name][0]
    wanted = (F.instance_norm(x_ref, None, None, layer.weight, layer.bias)
              if name == 'IN' else
              F.group_norm(x_ref, groups, layer.weight, layer.bias))
    assert error_of(layer(x), wanted.double()) < 1e-6


@pytest.mark.parametrize('name', OF_TORCH)
def test_without_a_reference_it_is_torchs_own_bit_for_bit(name):
    other, layer = OF_TORCH[name](), NORMS[name][2]()
    assert list(layer.state_dict()) == list(other.state_dict())
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    # Also where a reference waited for the weights of a BN.
    for own in (layer, NORMS[name][2](share=1 / 11)):
        own.load_state_dict(other.state_dict())
        for shape in ((2, CHANNELS, 5, 6), (1, CHANNELS, 31, 17)):
            runs = []
            x = torch.randn(shape)
            dy = torch.randn_like(x)
            for norm in (other, own):
                mine = x.clone().requires_grad_()
                y = norm(mine)
                norm.zero_grad()
                y.backward(dy)
                runs.append((y, mine.grad, norm.weight.grad, norm.bias.grad))
            for a, b in zip(*runs, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_types(kernel, name, dtype):
    """Statistics in float32: a square overflows float16 from 256."""
    layer = started(name, .5)
    x = (torch.randn(2, CHANNELS, 9, 7) * 300).to(dtype).requires_grad_()
    wanted = formula(name, x, layer, .5)
    y = layer(x)
    assert y.dtype == dtype
    assert error_of(y, wanted) < (1e-2 if dtype is torch.bfloat16 else 1e-3)
    y.backward(torch.randn_like(y))
    assert x.grad.dtype == dtype
    assert layer.weight.grad.dtype == torch.float32
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('share', [1., .1, 0.])
def test_dead_channels_are_finite(kernel, name, share):
    """A channel that was 0 everywhere has variance 0, and so has x here."""
    bn = bn_of()
    bn.running_mean.zero_()
    bn.running_var.zero_()
    layer = started(name, share, bn)
    x = torch.zeros(2, CHANNELS, 5, 5, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    for value in (y, x.grad, layer.weight.grad, layer.bias.grad):
        assert value.isfinite().all()


@pytest.mark.parametrize('shape', [(0, CHANNELS, 4, 4), (2, CHANNELS, 0, 3)])
def test_maps_of_nothing(name, shape):
    layer = started(name, .3)
    x = torch.zeros(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert layer.weight.grad.eq(0).all()
    assert layer.bias.grad.eq(0).all()


def test_an_image_is_alone(name):
    layer = started(name, .3)
    x = torch.randn(4, CHANNELS, 9, 7)
    together = layer(x)
    for i in range(4):
        assert torch.equal(layer.train()(x[i:i + 1])[0], together[i])


def test_saved_and_loaded(name):
    layer, x = started(name, .3), torch.randn(2, CHANNELS, 4, 4)
    assert list(layer.state_dict()) == [
        'weight', 'bias', 'ref_mean', 'ref_var', 'ref_share']
    build = NORMS[name][2]
    plain = build()
    nn.init.normal_(plain.weight)
    assert list(plain.state_dict()) == ['weight', 'bias']
    for source, other in ((layer, build()), (layer, build(share=.02)),
                          (plain, build(share=.02)), (plain, build())):
        other.load_state_dict(source.state_dict())
        assert torch.equal(other(x), source(x))
        again = build()
        again.load_state_dict(other.state_dict())
        assert torch.equal(again(x), source(x))


@pytest.mark.parametrize('change', [
    copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)),
    lambda layer: torch.compile(layer, fullgraph=True,
                                backend='aot_eager')])
def test_copies_keep_the_reference(name, change):
    layer, x = started(name, .1), torch.randn(2, CHANNELS, 4, 4)
    torch.testing.assert_close(change(layer)(x), layer(x))


def test_averages(name):
    """EMA copies a model before its weights are loaded, and pairs buffers."""
    first = nn.Sequential(NORMS[name][2](share=.1))
    average = ExponentialMovingAverage(first, momentum=.5,
                                       update_buffers=True)
    states = [started(name, .1, bn_of(seed=seed)).state_dict()
              for seed in (1, 2)]
    for state in states:
        first[0].load_state_dict(state)
        average.update_parameters(first)
    mean = {key: (states[0][key] + states[1][key]) / 2 for key in states[0]}
    other = NORMS[name][2]()
    other.load_state_dict(mean)
    x = torch.randn(2, CHANNELS, 5, 5)
    torch.testing.assert_close(average.eval()(x), other(x))


def test_exported(name):
    layer = nn.Sequential(started(name, .3)).eval()
    x = torch.randn(2, CHANNELS, 8, 8)
    program = torch.export.export(layer, (x, ))
    torch.testing.assert_close(program.module()(x), layer(x))


def test_transformed(name):
    """``torch.func`` takes the equation, and gives what backward gives."""
    layer = started(name, .3).double()
    x = torch.randn(2, CHANNELS, 3, 4, dtype=F64)
    own = x.clone().requires_grad_()
    layer(own).square().sum().backward()
    torch.testing.assert_close(
        torch.func.grad(lambda x: layer(x).square().sum())(x), own.grad)


@pytest.mark.parametrize('name, layer, abbr', [
    ('frn_mmdet.GN', GN, 'gn1'), ('frn_mmdet.IN', IN, 'in1'),
    ('frn_mmdet.LN', LN, 'ln1'), ('GFRN', GFRN, 'gfrn1')])
def test_others_know_what_it_is(name, layer, abbr):
    """By PyTorch's class, and by the names that its own layers have."""
    built_name, built = build_norm_layer(dict(type=name), 32, postfix=1)
    assert (built_name, type(built)) == (abbr, layer)
    assert is_norm(built)
    model = nn.Sequential(nn.Conv2d(3, 32, 1), started_32(layer))
    wrapper = DefaultOptimWrapperConstructor(
        dict(type='OptimWrapper',
             optimizer=dict(type='SGD', lr=1., weight_decay=.1)),
        dict(norm_decay_mult=0.))(model)
    decay = {id(group['params'][0]): group['weight_decay']
             for group in wrapper.optimizer.param_groups}
    assert {decay[id(p)] for p in model[1].parameters()} == {0.}
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    for change in (fuse_conv_bn, nn.SyncBatchNorm.convert_sync_batchnorm):
        changed = change(copy.deepcopy(model).eval())
        assert type(changed[1]) is layer
        assert torch.equal(changed(x), expected)


def started_32(layer):
    kwargs = dict(affine=True) if layer is IN else {}
    norm = layer(32, share=.3, **kwargs)
    norm.ref_mean.normal_()
    return norm


@pytest.mark.parametrize('layer', [
    GN(8, 4, affine=False, share=.3), GN(8, 4, bias=False, share=.3),
    IN(8, share=.3)], ids=repr)
def test_without_gamma_or_beta(layer):
    twin = (GN(8, 4, share=.3) if isinstance(layer, GN) else
            IN(8, affine=True, share=.3))
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    torch.testing.assert_close(layer(x), twin(x))
    layer(x).square().sum().backward()
    assert x.grad.isfinite().all()


def test_a_share_is_checked_and_printed(name):
    build = NORMS[name][2]
    assert repr(build(share=.1)).endswith(', share=0.1)')
    assert 'share' not in repr(build())
    layer = 'MapLayerNorm' if name == 'LN' else name
    for share in (-.1, 1.1, '1', True, float('nan')):
        with pytest.raises(ConfigError,
                           match=f'{layer} share must be a number from 0 to'):
            build(share=share)


def test_maps_of_another_shape_are_refused(name):
    layer = started(name, .3)
    for shape in ((2, 4, 3, 3), (2, CHANNELS), (2, CHANNELS, 1, 1, 1, 1)):
        with pytest.raises(ValueError):
            layer(torch.zeros(shape))


def test_materialised_from_meta(name):
    build = NORMS[name][2]
    with torch.device('meta'):
        layer = build(share=.1)
    layer.to_empty(device='cpu').reset_parameters()
    x = torch.randn(2, CHANNELS, 4, 4)
    assert torch.equal(layer.eval()(x), build(share=.1)(x))
