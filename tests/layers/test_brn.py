import copy

import numpy as np
import pytest
import torch
from mmcv.cnn import build_norm_layer, is_norm
from torch import nn
from torch.utils.checkpoint import checkpoint

from frn_mmdet.errors import ConfigError
from frn_mmdet.layers import BRN


def ioffe(x, weight, bias, mean, var, r_max, d_max, eps=1e-5):
    """Algorithm 1 of Ioffe (2017), channel by channel in float64 NumPy."""
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        batch = x[:, c]
        sigma_b = np.sqrt(batch.var() + eps)
        sigma = np.sqrt(var[c] + eps)
        r = np.clip(sigma_b / sigma, 1 / r_max, r_max)
        d = np.clip((batch.mean() - mean[c]) / sigma, -d_max, d_max)
        out[:, c] = weight[c] * ((batch - batch.mean()) / sigma_b * r +
                                 d) + bias[c]
    return out


def layer_at(step, dtype=torch.float64, **kwargs):
    """A layer with some past, before the given step."""
    torch.manual_seed(0)
    layer = BRN(4, **kwargs).to(dtype)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer.running_mean.normal_()
    layer.running_var.uniform_(.3, 3)
    layer.num_batches_tracked.fill_(step)
    return layer


def arrays(*tensors):
    return [t.detach().double().numpy().copy() for t in tensors]


@pytest.mark.parametrize('step, r_max, d_max', [
    (0, 1., 0.),
    (5000, 1., 0.),
    (15000, 1 + 2 * 10 / 35, 5 * 10 / 20),
    (25000, 1 + 2 * 20 / 35, 5.),
    (40000, 3., 5.),
    (10**7, 3., 5.),
])
def test_training_is_algorithm_1_on_its_schedule(step, r_max, d_max):
    layer = layer_at(step)
    assert layer.limits() == pytest.approx((r_max, d_max))
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64) * 4 + 2
    before = arrays(layer.weight, layer.bias, layer.running_mean,
                    layer.running_var)
    expected = ioffe(x.numpy(), *before, r_max, d_max)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected)
    assert layer.num_batches_tracked == step + 1


def test_gradients_do_not_pass_through_r_and_d():
    layer = layer_at(20000)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    probe = copy.deepcopy(layer)
    r, d = (v.view(1, 4, 1, 1) for v in probe._correct_and_track(x))
    mean = x.mean((0, 2, 3), keepdim=True)
    std = (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    weight, bias = (p.view(1, 4, 1, 1) for p in (layer.weight, layer.bias))
    expected = weight * ((x - mean) / std * r + d) + bias
    inputs = (x, layer.weight, layer.bias)
    grad = torch.randn_like(x)
    for a, b in zip(
            torch.autograd.grad(layer(x), inputs, grad),
            torch.autograd.grad(expected, inputs, grad),
            strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('warmup, step, share', [
    (10, 9, 0.), (10, 10, 1.), (10, 11, 1.), (0, 0, 1.)])
def test_a_schedule_without_a_slope(warmup, step, share):
    layer = layer_at(step, warmup_steps=warmup, r_steps=warmup,
                     d_steps=warmup)
    assert layer.limits() == (1 + 2 * share, 5 * share)


def test_no_number_is_read_from_the_device():
    """To read one would wait for a GPU; on ``meta`` there is none to read."""
    layer = BRN(4).to('meta')
    x = torch.randn(2, 4, 5, 5, device='meta', requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape


def test_compiled_whole():
    xs = [torch.randn(3, 4, 5, 6) * 4 + 2 for _ in range(3)]
    layers = [layer_at(20000, torch.float32) for _ in range(2)]
    compiled = torch.compile(layers[1], fullgraph=True, backend='aot_eager')
    for x in xs:
        torch.testing.assert_close(compiled(x), layers[0](x))
    for a, b in zip(*(layer.buffers() for layer in layers), strict=True):
        torch.testing.assert_close(a, b)


CHECKPOINTS = {
    'reentrant': lambda module, x: checkpoint(module, x, use_reentrant=True),
    'not': lambda module, x: checkpoint(module, x, use_reentrant=False)}


def results(norm, xs, run):
    """Of a step for each map: gradients, then statistics."""
    torch.manual_seed(1)
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False).double()
    module = nn.Sequential(conv, norm, nn.ReLU())
    for x in xs:
        run(module, x).square().sum().backward()
    return [p.grad for p in module.parameters()], list(norm.buffers())


@pytest.mark.parametrize('name', CHECKPOINTS)
@pytest.mark.parametrize('step', [0, 20000], ids=['warm-up', 'later'])
@pytest.mark.parametrize('momentum', [.01, .5])
def test_a_checkpoint_counts_a_step_once(name, step, momentum):
    """With the gradients and statistics of a step without one."""
    torch.manual_seed(0)
    xs = torch.randn(4, 3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    want, got = (
        results(layer_at(step, momentum=momentum), xs, run)
        for run in (lambda module, x: module(x), CHECKPOINTS[name]))
    for a, b in zip(want[0], got[0], strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(want[1], got[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_a_checkpoint_with_a_momentum_of_1(name):
    """Nothing of the statistics before is left, and nothing is NaN."""
    torch.manual_seed(0)
    xs = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    gradients, (mean, var, step) = results(
        layer_at(20000, momentum=1.), xs, CHECKPOINTS[name])
    assert step == 20002
    for value in (*gradients, mean, var):
        assert value.isfinite().all()


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_a_layer_called_twice_in_a_checkpointed_step(name):
    """It counts two, and its gradients are nearly those without."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)

    def twice(run):
        return lambda module, x: run(module, x) + run(module, x + 1)

    want, got = (
        results(layer_at(20000), [x], twice(run))
        for run in (lambda module, x: module(x), CHECKPOINTS[name]))
    for a, b in zip(want[0], got[0], strict=True):
        torch.testing.assert_close(a, b, rtol=.05, atol=.02 * a.abs().max())
    for a, b in zip(want[1], got[1], strict=True):
        assert torch.equal(a, b)


def test_r_max_1_and_d_max_0_is_batch_norm():
    layer = layer_at(10**6, r_max=1., d_max=0., momentum=.1)
    bn = nn.BatchNorm2d(4).double()
    bn.load_state_dict(layer.state_dict())
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    for _ in range(3):
        torch.testing.assert_close(layer(x), bn(x))
    layer.eval()
    bn.eval()
    torch.testing.assert_close(layer(x), bn(x))
    for key, value in bn.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value)


def test_test_uses_the_running_statistics():
    layer = layer_at(20000).eval()
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    state = copy.deepcopy(layer.state_dict())
    weight, bias, mean, var = (
        v.view(1, 4, 1, 1) for v in (layer.weight, layer.bias,
                                     layer.running_mean, layer.running_var))
    expected = weight * (x - mean) / (var + 1e-5).sqrt() + bias
    torch.testing.assert_close(layer(x), expected)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, state[key])


def test_a_resumed_run_continues_the_schedule():
    """Six steps at once, or three, a checkpoint, and three."""
    xs = torch.randn(6, 2, 4, 5, 5)
    schedule = dict(warmup_steps=1, r_steps=5, d_steps=4)
    whole = BRN(4, **schedule)
    expected = [whole(x) for x in xs]
    first = BRN(4, **schedule)
    outputs = [first(x) for x in xs[:3]]
    second = BRN(4, **schedule)
    second.load_state_dict(first.state_dict())
    outputs += [second(x) for x in xs[3:]]
    assert second.limits() == whole.limits() == (3., 5.)
    for a, b in zip(outputs, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_inputs(dtype):
    """Variances beyond float16's largest number, in float32."""
    layer = layer_at(20000, torch.float32)
    x = (torch.randn(3, 4, 8, 8) * 400 + 300).to(dtype).requires_grad_()
    before = arrays(layer.weight, layer.bias, layer.running_mean,
                    layer.running_var)
    expected = ioffe(x.detach().double().numpy(), *before, *layer.limits())
    out = layer(x)
    assert out.dtype == dtype
    np.testing.assert_allclose(
        out.detach().double().numpy(), expected, rtol=.02, atol=.05)
    out.float().sum().backward()
    assert x.grad.isfinite().all()


def test_one_element_and_no_image():
    layer = layer_at(10**6)
    x = torch.full((1, 4, 1, 1), 2., dtype=torch.float64)
    before = arrays(layer.weight, layer.bias, layer.running_mean,
                    layer.running_var)
    np.testing.assert_allclose(
        layer(x).detach().numpy(), ioffe(x.numpy(), *before, 3., 5.))
    state = copy.deepcopy(layer.state_dict())
    assert layer(x[:0]).shape == (0, 4, 1, 1)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, state[key])


def test_mmcv_knows_it():
    name, layer = build_norm_layer(dict(type='BRN', r_max=2.), 8, postfix=1)
    assert (name, type(layer), layer.r_max) == ('brn1', BRN, 2.)
    assert is_norm(layer)
    assert 'r_max=2.0' in repr(layer)


@pytest.mark.parametrize('args, words', [
    (dict(momentum=0.), ['momentum', 'over 0, at most 1', '0.0']),
    (dict(momentum=1.1), ['momentum', '1.1']),
    (dict(r_max=.9), ['r_max', '1 or more', '0.9']),
    (dict(d_max=-1), ['d_max', '0 or more', '-1']),
    (dict(warmup_steps=-1), ['warmup_steps', '-1']),
    (dict(r_steps=10), ['r_steps', 'warmup_steps (5000) or more']),
    (dict(d_steps=10), ['d_steps', '10']),
])
def test_arguments_out_of_range(args, words):
    with pytest.raises(ConfigError) as error:
        BRN(8, **args)
    for word in words:
        assert word in str(error.value)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match='8 channels.*4, 6, 3, 3'):
        BRN(8)(torch.randn(4, 6, 3, 3))
    with pytest.raises(ValueError, match='4, 8'):
        BRN(8)(torch.randn(4, 8))
