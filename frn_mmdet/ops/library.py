"""The operators of the kernels, as ``torch.library`` knows them.

``torch.ops.frn_mmdet.frn`` is what :func:`frn_mmdet.frn` calls where a kernel
is at hand. Declared here: schema, result of a fake run (for
``torch.compile``), second derivatives, and the autograd of a device without
that of ``autograd.h``. The kernels register themselves: ``cpu.cpp``,
``host.cpp``, ``cuda.py``.
"""

import math

import torch
from torch import Tensor
from torch.autograd import Function

from ..torch_private import below_autograd
from .check import check_frn, check_tlu
from .definition import compute_dtype, frn_definition, standardize_definition

OPS = torch.ops.frn_mmdet
FRN = 'frn_mmdet::frn'
BACKWARD = 'frn_mmdet::frn_backward'
TLU = 'frn_mmdet::tlu'
TLU_BACKWARD = 'frn_mmdet::tlu_backward'
STANDARDIZE = 'frn_mmdet::standardize'
STANDARDIZE_BACKWARD = 'frn_mmdet::standardize_backward'
GROUPED = 'frn_mmdet::grouped'
GROUPED_BACKWARD = 'frn_mmdet::grouped_backward'


def python_of(name: str) -> str:
    """The operator that a GPU's Python implements, for C++ to call."""
    return f'{name}_python'


def _define(name: str, schema: str, *tags: torch.Tag) -> None:
    """Declare an operator, and the one that Python implements for a GPU."""
    torch.library.define(name, schema, tags=tags)
    torch.library.define(python_of(name), schema)


# A compiler that has the maps in channels_last, for the convolutions, need not
# bring them back to the layout of eager mode: it takes any, and keeps it.
ANY_LAYOUT = torch.Tag.flexible_layout

# eps counts in units of eps_tensor if there is one, of shape (1,) or (C,).
# Returns y and, for backward, one number per row: 1 / sqrt(share * nu2 + eps),
# shape (N, C).
_define(
    FRN, '(Tensor x, Tensor weight, Tensor bias, Tensor? tau, '
    'Tensor? eps_tensor, float eps, Tensor? mean=None, float share=1.) -> '
    '(Tensor, Tensor)', ANY_LAYOUT)
# Gradients of x and, per channel, of weight, bias, tau and what is added to
# the mean square.
_define(
    BACKWARD, '(Tensor grad, Tensor x, Tensor inv, Tensor weight, '
    'Tensor bias, Tensor? tau, Tensor? eps_tensor, float eps, '
    'Tensor? mean=None, float share=1.) -> '
    '(Tensor, Tensor, Tensor, Tensor, Tensor)', ANY_LAYOUT)

# TLU alone, tau of shape (C,) or (1,). Returns z and, for backward, a bit for
# every element, set where it was clipped: shape (units, bytes), a unit being
# what lies together in memory, a row or (last) a pixel. So the layout of eager
# mode is part of it.
_define(TLU, '(Tensor x, Tensor tau) -> (Tensor, Tensor)')
# Gradients of x and, per channel and in its dtype, of tau.
_define(
    TLU_BACKWARD, '(Tensor grad, Tensor bits, bool last) -> (Tensor, Tensor)')

# Weight standardization, of each filter alone. A CPU's, with an autograd in
# cpu.cpp: other devices call no kernel for it.
torch.library.define(STANDARDIZE, '(Tensor weight, float eps) -> Tensor')
# Gradient of the weight.
torch.library.define(
    STANDARDIZE_BACKWARD, '(Tensor grad, Tensor weight, float eps) -> Tensor')

# Group normalisation that goes on from other statistics: grouped.py has its
# autograd. Returns y and, for backward, two numbers a group.
_define(
    GROUPED, '(Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor var, '
    'int groups, float eps, float share, bool centred) -> '
    '(Tensor, Tensor, Tensor)')
# Gradients of x and, per channel, of weight and bias.
_define(
    GROUPED_BACKWARD, '(Tensor grad, Tensor x, Tensor means, Tensor roots, '
    'Tensor weight, Tensor mean, Tensor var, int groups, float share, '
    'bool centred) -> (Tensor, Tensor, Tensor)')


def memory_format(x: Tensor) -> torch.memory_format:
    """The format a kernel works in and writes; another is copied into it."""
    last = format_of(x.dim(), True)
    is_last = not x.is_contiguous() and x.is_contiguous(memory_format=last)
    return last if is_last else torch.contiguous_format


def format_of(dim: int, last: bool) -> torch.memory_format:
    """channels_last or not, for a number of dimensions."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(dim, torch.contiguous_format) if last else (
        torch.contiguous_format)


@torch.library.register_fake(FRN)
def _(x, weight, bias, tau, eps_tensor, eps, mean=None, share=1.):
    check_frn(x, weight, bias, tau, eps if eps_tensor is None else eps_tensor,
              mean)
    y = torch.empty_like(x, memory_format=memory_format(x))
    return y, x.new_empty(x.shape[:2], dtype=compute_dtype(x))


@torch.library.register_fake(BACKWARD)
def _(grad, x, inv, weight, bias, tau, eps_tensor, eps, mean=None, share=1.):
    dx = torch.empty_like(x, memory_format=memory_format(x))
    return dx, *(inv.new_empty(x.shape[1]) for _ in range(4))


@torch.library.register_fake(GROUPED)
def _(x, weight, bias, mean, var, groups, eps, share, centred):
    y = torch.empty_like(x, memory_format=memory_format(x))
    return y, *(x.new_empty((len(x), groups), dtype=compute_dtype(x))
                for _ in range(2))


@torch.library.register_fake(GROUPED_BACKWARD)
def _(grad, x, means, roots, weight, mean, var, groups, share, centred):
    dx = torch.empty_like(x, memory_format=memory_format(x))
    return dx, *(means.new_empty(x.shape[1]) for _ in range(2))


def is_last(x: Tensor) -> bool:
    """Whether the channels of a position lie together in memory."""
    return x.dim() == 2 or memory_format(x) is not torch.contiguous_format


def units_of(shape: torch.Size, last: bool) -> tuple[int, int]:
    """Return how many units a map has, and their elements."""
    images, channels, *spatial = shape
    size = math.prod(spatial)
    return (images * size, channels) if last else (images * channels, size)


@torch.library.register_fake(TLU)
def _(x, tau):
    check_tlu(x, tau)
    units, length = units_of(x.shape, is_last(x))
    bits = x.new_empty((units, (length + 7) // 8), dtype=torch.uint8)
    return torch.empty_like(x, memory_format=memory_format(x)), bits


@torch.library.register_fake(TLU_BACKWARD)
def _(grad, bits, last):
    dx = torch.empty_like(grad, memory_format=format_of(grad.dim(), last))
    return dx, grad.new_empty(grad.shape[1])


class Frn(Function):
    """The gradient of FRN; ``autograd.h`` has the same."""

    @staticmethod
    def forward(ctx, *inputs):
        """Args and results are those of the operator."""
        y, inv = _below(OPS.frn, *inputs)
        x, weight, bias, tau, eps_tensor, ctx.eps, mean, ctx.share = inputs
        ctx.save_for_backward(x, inv, weight, bias, tau, eps_tensor, mean)
        ctx.mark_non_differentiable(inv)
        ctx.set_materialize_grads(False)  # or inv gets a map of zeros
        return y, inv

    @staticmethod
    def backward(ctx, grad, _):
        """Gradients of the operator's arguments."""
        if grad is None:
            return (None, ) * 8
        *saved, mean = ctx.saved_tensors
        _, _, weight, bias, tau, eps_tensor = saved
        dx, dweight, dbias, dtau, deps = _plainly(
            OPS.frn_backward, grad, *saved, ctx.eps, mean, ctx.share)
        if eps_tensor is not None:
            deps = deps if ctx.eps == 1 else deps * ctx.eps
            if eps_tensor.numel() == 1:
                deps = deps.sum().view(1)
        likes = (weight, bias, tau, eps_tensor)
        return dx, *(
            None if like is None else value.to(like.dtype)
            for value, like in zip(
                (dweight, dbias, dtau, deps), likes, strict=True)), None, (
                    None), None


class Tlu(Function):
    """The gradient of the TLU; ``autograd.h`` has the same."""

    @staticmethod
    def forward(ctx, x, tau):
        """Args and results are those of the operator."""
        z, bits = _below(OPS.tlu, x, tau)
        ctx.last = is_last(x)
        ctx.shape, ctx.dtype = tau.shape, tau.dtype
        ctx.save_for_backward(bits)
        ctx.mark_non_differentiable(bits)
        ctx.set_materialize_grads(False)
        return z, bits

    @staticmethod
    def backward(ctx, grad, _):
        """Gradients of x and tau."""
        if grad is None:
            return None, None
        bits, = ctx.saved_tensors
        dx, dtau = _plainly(OPS.tlu_backward, grad, bits, ctx.last)
        if dtau.shape != ctx.shape:  # one for all channels
            dtau = dtau.sum().view(1)
        return dx, dtau.to(ctx.dtype)


def _below(operator, *inputs):
    """Call an operator below autograd."""
    with below_autograd():
        return operator(*inputs)


def _plainly(operator, *inputs):
    """Call it as it is where somebody differentiates the call, else below."""
    if torch.is_grad_enabled():
        return operator(*inputs)
    return _below(operator, *inputs)


def _frn(x, weight, bias, tau, eps_tensor, eps, mean=None, share=1.):
    inputs = x, weight, bias, tau, eps_tensor, eps, mean, share
    if torch.is_grad_enabled():
        return Frn.apply(*inputs)
    return _below(OPS.frn, *inputs)


def _tlu(x, tau):
    if torch.is_grad_enabled():
        return Tlu.apply(x, tau)
    return _below(OPS.tlu, x, tau)


# By themselves, not by torch.library's register_autograd: its way through
# Python is twice as long.
torch.library.impl(FRN, 'Autograd', _frn)
torch.library.impl(TLU, 'Autograd', _tlu)


def _keep_for_second(ctx, inputs, output):
    (grad, x, _, weight, bias, tau, eps_tensor, ctx.eps, mean,
     ctx.share) = inputs
    ctx.save_for_backward(grad, x, weight, bias, tau, eps_tensor, mean)


def _second_backward(ctx, *upstream):
    """Differentiate the definition twice, to any order."""
    with torch.enable_grad():
        *saved, mean = ctx.saved_tensors
        inputs = [_requires_grad(t) for t in saved]
        grad, x, weight, bias, tau, eps_tensor = inputs
        # Per channel, as the operator's gradient of it is.
        eps = ctx.eps if eps_tensor is None else (
            eps_tensor.expand(x.shape[1]) * ctx.eps)
        y = frn_definition(x, weight, bias, tau, eps, mean, ctx.share)
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
    return dgrad, dx, None, *rest, *[None] * 3


def _requires_grad(tensor):
    """An alias that requires grad, with the history of ``tensor`` behind."""
    if tensor is None:
        return None
    alias = tensor.view_as(tensor)
    return alias if alias.requires_grad else alias.requires_grad_()


torch.library.register_autograd(
    BACKWARD, _second_backward, setup_context=_keep_for_second)


def _keep_bits_for_second(ctx, inputs, output):
    grad, bits, ctx.last = inputs
    ctx.save_for_backward(bits)
    ctx.shape = grad.shape


def _second_tlu_backward(ctx, of_dx, of_dtau):
    """Of what is linear in the gradient: a part goes on, a part to tau."""
    bits, = ctx.saved_tensors
    below = unpack(bits, ctx.shape, ctx.last)
    channels = [1, -1] + [1] * (len(ctx.shape) - 2)
    return torch.where(below, of_dtau.view(channels), of_dx), None, None


torch.library.register_autograd(
    TLU_BACKWARD, _second_tlu_backward, setup_context=_keep_bits_for_second)


def unpack(bits: Tensor, shape: torch.Size, last: bool) -> Tensor:
    """Return the bits as a bool tensor of a shape."""
    order = [0, *range(2, len(shape)), 1] if last else range(len(shape))
    length = units_of(shape, last)[1]
    each = bits.unsqueeze(-1) >> torch.arange(8, device=bits.device) & 1
    each = each.flatten(1)[:, :length].bool()
    return each.reshape([shape[d] for d in order]).permute(
        [list(order).index(d) for d in range(len(shape))])


@torch.library.register_fake(STANDARDIZE)
def _(weight, eps):
    return torch.empty_like(weight, memory_format=memory_format(weight))


@torch.library.register_fake(STANDARDIZE_BACKWARD)
def _(grad, weight, eps):
    return torch.empty_like(weight, memory_format=memory_format(weight))


def _keep_grad(ctx, inputs, output):
    grad, weight, ctx.eps = inputs
    ctx.save_for_backward(grad, weight)


def _second_standardize_backward(ctx, upstream):
    with torch.enable_grad():
        grad, weight = inputs = [_requires_grad(t) for t in ctx.saved_tensors]
        first = torch.autograd.grad(
            standardize_definition(weight, ctx.eps), weight, grad,
            create_graph=True)
    return *torch.autograd.grad(
        first, inputs, upstream, create_graph=torch.is_grad_enabled()), None


torch.library.register_autograd(
    STANDARDIZE_BACKWARD, _second_standardize_backward,
    setup_context=_keep_grad)
