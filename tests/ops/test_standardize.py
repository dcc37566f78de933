import pytest
import torch
from mmcv.cnn.bricks.conv_ws import conv_ws_2d
from torch import nn

from frn_mmdet import use_kernel
from frn_mmdet.ops.standardize import standardize

SHAPES = [(8, 3, 7, 7), (16, 64, 1, 1), (6, 1, 3, 3), (4, 2, 1, 1),
          (5, 8, 3, 1)]


@pytest.fixture(params=['plain', 'native'], autouse=True)
def kernel(request):
    with use_kernel(request.param):
        yield request.param


def formula(weight, eps=1e-5):
    """In float64, a filter at a time, by Bessel's definition."""
    out = torch.empty_like(weight)
    for i, w in enumerate(weight):
        mean = w.sum() / w.numel()
        std = ((w - mean)**2).sum().div(w.numel() - 1).sqrt()
        out[i] = (w - mean) / (std + eps)
    return out


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('scale', [1., 1e-3, 1e-7])
def test_it_is_the_formula(shape, scale):
    torch.manual_seed(0)
    wide = (torch.randn(shape, dtype=torch.float64) + .3) * scale
    weight = wide.float().requires_grad_()
    wide = weight.detach().double().requires_grad_()
    grad = torch.randn(shape)
    out = standardize(weight)
    want = torch.stack([formula(w[None])[0] for w in wide])
    out.backward(grad)
    want.backward(grad.double())
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-5)
    # Of two elements the gradient is a small difference of large numbers.
    size = float(grad.abs().max() / (wide.flatten(1).std(1).min() + 1e-5))
    torch.testing.assert_close(
        weight.grad.double(), wide.grad, rtol=1e-4, atol=1e-6 * size)


def formula_and_gradient(weight, grad):
    wide = weight.detach().double().requires_grad_()
    out = formula(wide)
    out.backward(grad.double())
    return out.detach(), wide.grad


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5,
             torch.bfloat16: 1e-2, torch.float16: 2e-3}


# Of one filter, of less than a vector, of no whole number of them, and of
# several blocks of the kernel.
@pytest.mark.parametrize('shape', [
    (1, 2, 1, 1), (3, 5, 1, 1), (7, 37, 3, 3), (2, 300, 2), (1, 4, 3, 5, 5),
    (1030, 64, 1, 1)], ids=str)
@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
def test_every_size_and_dtype(shape, dtype):
    torch.manual_seed(0)
    weight = (torch.randn(shape) * .05 + .02).to(dtype).requires_grad_()
    grad = torch.randn(shape).to(dtype)
    out = standardize(weight)
    out.backward(grad)
    want, want_grad = formula_and_gradient(weight, grad)
    tol = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), want, rtol=tol, atol=tol)
    size = 0 if shape[1] == 2 else want_grad.abs().max().item()
    torch.testing.assert_close(
        weight.grad.double(), want_grad, rtol=tol, atol=tol * max(size, 100))


LAYOUTS = {
    'channels_last': lambda w: w.contiguous(
        memory_format=torch.channels_last),
    'transposed': lambda w: w.transpose(0, 1).contiguous().transpose(0, 1),
    'every other': lambda w: w.repeat_interleave(2, 1)[:, ::2],
    'expanded': lambda w: w[:, :, :1, :1].expand(w.shape),
}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('of', ['weight', 'grad', 'both'])
def test_layouts(layout, of):
    torch.manual_seed(0)
    values = dict(weight=torch.randn(6, 5, 3, 3), grad=torch.randn(6, 5, 3, 3))
    for name in values:
        if of in (name, 'both'):
            values[name] = LAYOUTS[layout](values[name])
    weight = values['weight'].requires_grad_()
    out = standardize(weight)
    out.backward(values['grad'])
    want, want_grad = formula_and_gradient(weight, values['grad'])
    torch.testing.assert_close(out, want.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        weight.grad, want_grad.float(), rtol=1e-4, atol=1e-5)


def test_the_kernel_keeps_the_memory_format():
    """As the convolution wants it, and what adds up the gradient."""
    weight = torch.randn(4, 5, 3, 3).contiguous(
        memory_format=torch.channels_last).requires_grad_()
    with use_kernel('native'):
        out = standardize(weight)
    out.square().sum().backward()
    for t in (out, weight.grad):
        assert t.is_contiguous(memory_format=torch.channels_last)


def test_the_choice_decides_what_runs(kernel):
    weight = torch.randn(4, 5, 3, 3, requires_grad=True)
    name = standardize(weight).grad_fn.name()
    assert ('Standardize' in name) == (kernel == 'native')


def test_other_devices_take_pytorchs_operations():
    weight = torch.empty(4, 5, 3, 3, device='meta', requires_grad=True)
    standardize(weight).sum().backward()
    assert weight.grad.shape == weight.shape


def test_the_number_of_threads_does_not_show():
    torch.manual_seed(0)
    weight = torch.randn(600, 20, 3, 3, requires_grad=True)
    grad = torch.randn_like(weight)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = standardize(weight)
            results.append((out, *torch.autograd.grad(out, weight, grad)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert torch.equal(a, b)


def test_gradients_of_first_and_second_order():
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardize, weight)
    assert torch.autograd.gradgradcheck(standardize, weight)


@pytest.mark.parametrize('eps', [1e-5, 1e-2])
def test_it_is_mmcvs(eps):
    torch.manual_seed(0)
    weight, x = torch.randn(8, 2, 3, 3), torch.randn(2, 4, 9, 9)
    want = conv_ws_2d(x, weight, padding=1, groups=2, eps=eps)
    got = nn.functional.conv2d(
        x, standardize(weight, eps), padding=1, groups=2)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float(dtype):
    torch.manual_seed(0)
    weight = (torch.randn(4, 512, 3, 3) * 1e-3).to(dtype).requires_grad_()
    out = standardize(weight)
    want = standardize(weight.detach().float()).to(dtype)
    assert torch.equal(out, want)
    out.sum().backward()
    assert weight.grad.dtype == dtype
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize('value', [0., .1, 3.])
def test_a_constant_filter_is_0(value):
    """Nothing is left of it, and a gradient is finite."""
    weight = torch.full((2, 64, 3, 3), value, requires_grad=True)
    out = standardize(weight)
    assert out.abs().max() < 1e-2
    out.sum().backward()
    assert weight.grad.isfinite().all()


def test_nothing_comes_of_a_filter_of_one_value():
    """Whose deviation is 0 to the last bit; the others are as before."""
    torch.manual_seed(0)
    weight = torch.randn(3, 8, 3, 3)
    weight[1] = 3
    weight.requires_grad_()
    out, grad = standardize(weight), torch.randn(3, 8, 3, 3)
    out.backward(grad)
    assert not out[1].any()
    assert weight.grad.isfinite().all()
    alone = weight.detach()[::2].requires_grad_()
    standardize(alone).backward(grad[::2])
    assert torch.equal(weight.grad[::2], alone.grad)


def test_nan_stays_in_its_filter():
    weight = torch.randn(3, 8, 3, 3)
    weight[1, 2, 0, 0] = torch.nan
    out = standardize(weight)
    assert out[1].isnan().all()
    assert out[::2].isfinite().all()


def test_no_filters():
    weight = torch.empty(0, 8, 3, 3, requires_grad=True)
    standardize(weight).sum().backward()
    assert weight.grad.shape == weight.shape


def test_of_a_weight_of_inference_mode():
    with torch.inference_mode():
        weight = torch.randn(4, 5, 3, 3)
    out = standardize(weight)
    assert not out.requires_grad
    torch.testing.assert_close(
        out, formula(weight.double()).float(), rtol=1e-4, atol=1e-5)


def test_transforms():
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    loss = lambda w: standardize(w).pow(3).sum()  # noqa: E731
    want = weight.clone().requires_grad_()
    loss(want).backward()
    torch.testing.assert_close(torch.func.grad(loss)(weight), want.grad)
    both = torch.stack([weight, weight * 2])
    torch.testing.assert_close(
        torch.func.vmap(standardize)(both),
        torch.stack([standardize(w) for w in both]))


def test_the_kernel_keeps_the_weight_alone():
    weight = torch.randn(8, 16, 3, 3, requires_grad=True)
    kept = []
    with use_kernel('native'), torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t) or t, lambda t: t):
        standardize(weight)
    assert [t.data_ptr() for t in kept] == [weight.data_ptr()]
