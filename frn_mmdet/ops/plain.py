"""FRN in plain PyTorch, for any device, keeping one activation."""

import torch
from torch import Tensor
from torch.autograd import Function

from .definition import (
    compute_dtype,
    frn_definition,
    mean_square,
    per_channel,
    spatial_dims,
)


class PlainFRN(Function):
    """The definition with the backward of the paper's section 3.2.

    Autograd would keep three to five tensors as large as the input. This
    keeps the input and one number per row (one channel of one image) and
    computes the rest again.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor,
                tau: Tensor | None, eps: float | Tensor,
                mean: Tensor | None, share: float) -> Tensor:
        """Args and result are those of :func:`frn_mmdet.frn`."""
        x_wide = _centred(x, mean)
        inv = (mean_square(x_wide) * share + per_channel(eps, x)).rsqrt()
        y = _affine(x_wide, inv, weight, bias)
        if tau is not None:
            y = torch.maximum(y, per_channel(tau, x))
        eps_is_tensor = isinstance(eps, Tensor)
        ctx.eps = None if eps_is_tensor else eps
        ctx.share = share
        ctx.save_for_backward(x, inv, weight, bias, tau,
                              eps if eps_is_tensor else None, mean)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of x, weight, bias, tau and eps; None for the rest."""
        x, inv, weight, bias, tau, eps, mean = ctx.saved_tensors
        eps = ctx.eps if eps is None else eps
        if torch.is_grad_enabled():  # somebody differentiates the backward
            return _differentiable_backward(ctx, grad, x, weight, bias, tau,
                                            eps, mean, ctx.share)
        return _backward(ctx.needs_input_grad, grad, x, inv, weight, bias,
                         tau, eps, mean, ctx.share)


def _backward(needs_grad, grad, x, inv, weight, bias, tau, eps, mean, share):
    """Section 3.2: dx = inv * (I - x_hat x_hat^T / N) dx_hat."""
    dims = spatial_dims(x)
    over_rows = (0, ) + dims
    x_wide = _centred(x, mean)
    dy = grad.to(compute_dtype(x))
    dx = dweight = dbias = dtau = deps = None

    if tau is not None:
        clipped = _affine(x_wide, inv, weight, bias) < per_channel(tau, x)
        if needs_grad[3]:
            dtau = torch.where(clipped, dy, 0).sum(over_rows).to(tau.dtype)
        dy = dy.masked_fill(clipped, 0)

    # <dy, x_hat> of every row serves weight, x and eps.
    dot = (dy * x_wide).sum(dims, keepdim=True) * inv
    if needs_grad[1]:
        dweight = dot.sum(over_rows).to(weight.dtype)
    if needs_grad[2]:
        dbias = dy.sum(over_rows).to(bias.dtype)
    row_dot = dot * per_channel(weight, x)
    if needs_grad[0]:
        size = x[0, 0].numel() if x.numel() else 1
        # Begun from x, so that it gets the memory format of x.
        dx = x_wide * (inv.square() * row_dot / -size * share)
        dx = dx.addcmul_(dy, per_channel(weight, x) * inv).to(x.dtype)
    if needs_grad[4]:
        deps = -0.5 * (row_dot * inv.square()).sum(over_rows)
        deps = (deps.sum(0, keepdim=True) if eps.numel() == 1 else deps)
        deps = deps.view_as(eps).to(eps.dtype)
    return dx, dweight, dbias, dtau, deps, None, None


def _centred(x: Tensor, mean: Tensor | None) -> Tensor:
    x = x.to(compute_dtype(x))
    return x if mean is None else x - per_channel(mean, x)


def _differentiable_backward(ctx, grad, *inputs):
    """The same gradients as a graph, through the definition."""
    wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
    grads = torch.autograd.grad(
        frn_definition(*inputs), [inputs[i] for i in wanted],
        grad,
        create_graph=True)
    result = [None] * len(inputs)
    for i, value in zip(wanted, grads, strict=False):
        result[i] = value
    return tuple(result)


def _affine(x_wide: Tensor, inv: Tensor, weight: Tensor,
            bias: Tensor) -> Tensor:
    """Equation (2), the one place where forward and backward compute y.

    Both must round alike, or backward would clip other positions than
    forward did.
    """
    return torch.addcmul(
        per_channel(bias, x_wide), x_wide, inv * per_channel(weight, x_wide))
