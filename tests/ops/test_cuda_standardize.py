"""The Triton kernels of weight standardization, against float64."""

import pytest
import torch

from frn_mmdet.ops import cuda_standardize as kernels

from .test_standardize import TOLERANCE, formula_and_gradient

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
# Less than a vector, no whole number of them, more than a tile.
SHAPES = [(3, 2, 1, 1), (4, 5, 3, 3), (2, 515, 3, 3), (5, 130)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32,
                                   torch.bfloat16])
@pytest.mark.parametrize('last', [False, True])
def test_forward_and_gradient(shape, dtype, last):
    torch.manual_seed(0)
    weight = (torch.randn(shape) + .3).to(DEVICE, dtype)
    grad = torch.randn(shape).to(DEVICE, dtype)
    if last and weight.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    got = (kernels.forward(weight, 1e-5),
           kernels.backward(grad, weight, 1e-5))
    # Of two elements the gradient is a small difference of large numbers.
    large = (grad.abs().max() / weight.double().flatten(1).std(1).min()).item()
    for a, b in zip(got, formula_and_gradient(weight, grad), strict=True):
        assert a.dtype == dtype and a.stride() == weight.stride()
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(a.double(), b, rtol=tolerance,
                                   atol=tolerance * max(large, 1.))


@pytest.mark.parametrize('value', [0., .1, 1e4])
def test_a_constant_filter_is_0(value):
    weight = torch.full((2, 30, 3, 3), value, device=DEVICE)
    assert not kernels.forward(weight, 1e-5).any()
    assert kernels.backward(torch.ones_like(weight), weight,
                            1e-5).isfinite().all()


def test_no_filters():
    empty = torch.empty(0, 3, 1, 1, device=DEVICE)
    assert kernels.forward(empty, 1e-5).shape == empty.shape
    assert kernels.backward(empty, empty, 1e-5).shape == empty.shape
