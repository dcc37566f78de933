import pytest
import torch
from mmcv.cnn.bricks.conv_ws import conv_ws_2d
from torch import nn

from frn_mmdet.ops.standardize import standardize

SHAPES = [(8, 3, 7, 7), (16, 64, 1, 1), (6, 1, 3, 3), (4, 2, 1, 1),
          (5, 8, 3, 1)]


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


def test_nothing_more_is_kept():
    """Than the weight, the result and two numbers a filter."""
    weight = torch.randn(8, 16, 3, 3, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t) or t, lambda t: t):
        out = standardize(weight)
    large = {t.data_ptr() for t in kept if t.numel() > 8}
    assert large <= {weight.data_ptr(), out.data_ptr()}
    assert sum(t.numel() for t in kept if t.numel() <= 8) <= 16
