"""The Triton kernels of the norms that go on from BN."""

import pytest
import torch

from frn_mmdet.ops import cuda_grouped
from frn_mmdet.ops.grouped import How, grouped_definition

F64 = torch.float64
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
# name: shape, channels_last, groups
MAPS = {
    'GN': ((2, 6, 13, 21), False, 3),
    'IN': ((3, 5, 7, 7), False, 5),
    'LN': ((2, 70, 3, 5), False, 1),
    'one position': ((2, 6, 1, 1), False, 2),
    'split': ((1, 4, 182, 181), False, 2),
    '3-D': ((2, 4, 3, 4, 5), False, 2),
    'last': ((2, 6, 7, 9), True, 2),
    'last, split': ((1, 96, 30, 31), True, 96),
}


@pytest.mark.parametrize('name', MAPS)
@pytest.mark.parametrize('share, centred', [(.1, True), (1., False)])
@pytest.mark.parametrize(
    'dtype', [F64, torch.float32] if DEVICE == 'cuda' else [F64])
def test_is_the_definition(name, share, centred, dtype):
    shape, last, groups = MAPS[name]
    torch.manual_seed(0)
    x, grad = (torch.randn(shape, dtype=dtype, device=DEVICE) + .5
               for _ in range(2))
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight, bias, mean = torch.randn(3, shape[1], dtype=dtype, device=DEVICE)
    var = torch.rand(shape[1], dtype=dtype, device=DEVICE) + .2
    y, m, root = cuda_grouped.forward(x, weight, bias, mean, var, groups,
                                      1e-3, share, centred)
    got = cuda_grouped.backward(grad, x, m, root, weight, mean, var, groups,
                                share, centred)
    leaves = [v.to(F64, copy=True).requires_grad_() for v in (x, weight, bias)]
    expected = grouped_definition(
        leaves[0], How(groups, 1e-3, centred, share), *leaves[1:],
        mean.to(F64), var.to(F64))
    gradients = torch.autograd.grad(expected, leaves, grad.to(F64))
    # On a GPU eps and share come as float32.
    relative = 1e-5 if dtype is not F64 else 1e-10 if DEVICE == 'cpu' else 1e-7
    for a, b in zip((y, *got), (expected, *gradients), strict=True):
        torch.testing.assert_close(a.to(F64), b, rtol=relative,
                                   atol=relative * b.abs().max().item())
    assert y.stride() == got[0].stride() == x.stride()


def test_a_map_that_is_far_from_the_reference():
    """100 deviations off, in float32."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 30, 31, device=DEVICE) + 100
    one, zero = (value(4, device=DEVICE) for value in (
        torch.ones, torch.zeros))
    y, *_ = cuda_grouped.forward(x, one, zero, zero, one, 2, 1e-5, .9, True)
    expected = grouped_definition(
        x.double(), How(2, 1e-5, True, .9),
        *(value.double() for value in (one, zero, zero, one)))
    torch.testing.assert_close(y.double(), expected, rtol=2e-6, atol=2e-5)
