"""The operators of the kernels, as ``torch.library`` knows them.

``torch.ops.frn_mmdet.frn`` is what :func:`frn_mmdet.frn` calls where a kernel
is at hand. Declared here: schema, result of a fake run (for
``torch.compile``), autograd. The kernels register themselves: ``cpu.cpp``
(with an autograd of its own), ``cuda.py``.
"""

import torch
from torch import Tensor

from .definition import compute_dtype, frn_definition

FRN = 'frn_mmdet::frn'
BACKWARD = 'frn_mmdet::frn_backward'

# eps is eps_tensor if there is one. Returns y and, for backward, one number
# per row: 1 / sqrt(nu2 + eps), shape (N, C).
torch.library.define(
    FRN, '(Tensor x, Tensor weight, Tensor bias, Tensor? tau, '
    'Tensor? eps_tensor, float eps) -> (Tensor, Tensor)')
# Gradients of x and, per channel, of weight, bias, tau and eps.
torch.library.define(
    BACKWARD, '(Tensor grad, Tensor x, Tensor inv, Tensor weight, '
    'Tensor bias, Tensor? tau, Tensor? eps_tensor, float eps) -> '
    '(Tensor, Tensor, Tensor, Tensor, Tensor)')


def memory_format(x: Tensor) -> torch.memory_format:
    """The format a kernel works in and writes; another is copied into it."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    is_last = (
        last is not None and not x.is_contiguous()
        and x.is_contiguous(memory_format=last))
    return last if is_last else torch.contiguous_format


@torch.library.register_fake(FRN)
def _(x, weight, bias, tau, eps_tensor, eps):
    y = torch.empty_like(x, memory_format=memory_format(x))
    return y, x.new_empty(x.shape[:2], dtype=compute_dtype(x))


@torch.library.register_fake(BACKWARD)
def _(grad, x, inv, weight, bias, tau, eps_tensor, eps):
    dx = torch.empty_like(x, memory_format=memory_format(x))
    return dx, *(inv.new_empty(x.shape[1]) for _ in range(4))


def _keep(ctx, inputs, output):
    x, weight, bias, tau, eps_tensor, ctx.eps = inputs
    inv = output[1]
    ctx.save_for_backward(x, inv, weight, bias, tau, eps_tensor)
    ctx.mark_non_differentiable(inv)


def _backward(ctx, grad, _):
    saved = ctx.saved_tensors
    _, _, weight, bias, tau, eps_tensor = saved
    dx, dweight, dbias, dtau, deps = torch.ops.frn_mmdet.frn_backward(
        grad, *saved, ctx.eps)
    if eps_tensor is None:
        deps = None
    elif eps_tensor.numel() == 1:
        deps = deps.sum().view(1)
    likes = (weight, bias, tau, eps_tensor)
    return dx, *(
        None if like is None else value.to(like.dtype)
        for value, like in zip(
            (dweight, dbias, dtau, deps), likes, strict=True)), None


torch.library.register_autograd(FRN, _backward, setup_context=_keep)


def _keep_for_second(ctx, inputs, output):
    grad, x, _, weight, bias, tau, eps_tensor, ctx.eps = inputs
    ctx.save_for_backward(grad, x, weight, bias, tau, eps_tensor)


def _second_backward(ctx, *upstream):
    """Differentiate the definition twice, to any order."""
    with torch.enable_grad():
        inputs = [_requires_grad(t) for t in ctx.saved_tensors]
        grad, x, weight, bias, tau, eps_tensor = inputs
        # Per channel, as the operator's gradient of it is.
        eps = ctx.eps if eps_tensor is None else eps_tensor.expand(x.shape[1])
        y = frn_definition(x, weight, bias, tau, eps)
        of = [(t, u) for t, u in zip(
            (x, weight, bias, tau, eps), upstream, strict=True)
            if isinstance(t, Tensor)]
        first = torch.autograd.grad(
            y, [t for t, _ in of], grad, create_graph=True)
    wanted = [t for t in inputs if t is not None]
    second = torch.autograd.grad(
        first, wanted, [u for _, u in of],
        create_graph=torch.is_grad_enabled(), allow_unused=True)
    second = iter(second)
    dgrad, dx, *rest = [None if t is None else next(second) for t in inputs]
    return dgrad, dx, None, *rest, None


def _requires_grad(tensor):
    """An alias that requires grad, with the history of ``tensor`` behind."""
    if tensor is None:
        return None
    alias = tensor.view_as(tensor)
    return alias if alias.requires_grad else alias.requires_grad_()


torch.library.register_autograd(
    BACKWARD, _second_backward, setup_context=_keep_for_second)
