"""Weight standardization: each filter minus its mean, over its deviation."""

import torch
from torch import Tensor
from torch.autograd import Function

from .definition import compute_dtype, standardize_definition
from .kernel import by_definition, is_native

KERNEL = torch.ops.frn_mmdet.standardize.default
# In the place of a deviation of 0. Any number will do: it is divided by again.
TINY = 1e-30


def standardize(weight: Tensor, eps: float = 1e-5) -> Tensor:
    r"""``(w - mean) / (std + eps)`` of each filter.

    Qiao et al., *Micro-Batch Training with Batch-Channel Normalization and
    Weight Standardization* (2019), equation (2), with eps and the unbiased
    deviation as in mmcv (``conv_ws_2d``) and the authors' code.

    Args:
        weight (Tensor): Shape (filters, \*filter), any float dtype;
            computed in float32 for half types.
        eps (float): Added to the deviation. Defaults to 1e-5.

    Returns:
        Tensor: Shape and dtype of ``weight``.
    """
    if is_native(weight):
        return KERNEL(weight, eps)
    if by_definition():
        return standardize_definition(weight, eps)
    return _Standardize.apply(weight, eps)


class _Standardize(Function):
    """Without a kernel: by those of layer normalisation, a pass each way.

    Backward keeps the weight, which is there anyway, and two numbers a
    filter; the convolution keeps the result.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, eps: float) -> Tensor:
        rows = weight.to(compute_dtype(weight)).flatten(1)
        size = rows.shape[1]
        # torch.var_mean takes 20 times as long on a CPU.
        out, mean, inv = torch.native_layer_norm(
            rows, [size], None, None, TINY)
        # 1 / (inv (std + eps)), std being the unbiased one.
        out *= (inv * eps + (size / (size - 1))**.5).reciprocal_()
        ctx.eps = eps
        ctx.save_for_backward(weight, mean, inv)
        return out.view_as(weight).to(weight.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        weight, mean, inv = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates the backward
            y = standardize_definition(weight, ctx.eps)
            return torch.autograd.grad(y, weight, grad, create_graph=True)[
                0], None
        dtype = compute_dtype(weight)
        grad, rows = grad.to(dtype).flatten(1), weight.to(dtype).flatten(1)
        size = rows.shape[1]
        # What it should be, with c = w - mean(w):
        #   (grad - mean(grad)) / (std + eps)
        #       - c <grad, c> / ((std + eps)^2 (n - 1) std)
        # and what the kernel computes, for any number a:
        #   a (grad - mean(grad)) - a^3 c <grad, c> / n
        # A factor behind it makes the two the same.
        std = (size / (size - 1))**.5 / inv
        whole = std + ctx.eps
        a = (whole * std * ((size - 1) / size)).rsqrt_()
        dw = torch.ops.aten.native_layer_norm_backward(
            grad, rows, [size], mean, a, None, None, [True, False, False])[0]
        dw *= 1 / (whole * a)
        return dw.view_as(weight).to(weight.dtype), None
