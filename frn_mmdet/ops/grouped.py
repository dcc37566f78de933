"""Group normalisation that goes on from other statistics."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .check import check_dtype, check_parameter
from .definition import compute_dtype, exported, per_channel, spatial_dims
from .kernel import by_definition, is_native

FORWARD = torch.ops.frn_mmdet.grouped.default
BACKWARD = torch.ops.frn_mmdet.grouped_backward.default


class How(NamedTuple):
    """What a grouped norm computes.

    Attributes:
        groups (int): Of channels; they divide C.
        eps (float): Added to the variance.
        centred (bool): Whether the mean is subtracted; else the mean square
            stands for the variance.
        share (float): Of the norm's own statistics, the rest being those
            that are given. 1: its own alone.
    """

    groups: int
    eps: float
    centred: bool
    share: float = 1.


def grouped_norm(x: Tensor,
                 how: How,
                 weight: Tensor | None,
                 bias: Tensor | None,
                 mean: Tensor | None = None,
                 var: Tensor | None = None) -> Tensor:
    r"""Normalise a standardized map by groups of channels of each image.

    With m and v the mean and the variance of ``x_ref`` over a group::

        x_ref = (x - mean) / sqrt(var)
        y = weight * (x_ref - share * m)
            / sqrt(share * (v + eps) + 1 - share) + bias

    Statistics and arithmetic are float32 for half types. The backward keeps
    the input and two numbers a group. CPU and GPU have kernels; other devices
    take PyTorch's own operations.

    Args:
        x (Tensor): Shape (N, C, \*spatial) with 1 to 3 spatial dimensions.
            Any size may be 0. Its memory format is kept.
        how (How): Which norm.
        weight (Tensor, optional): gamma, shape (C,). None: 1.
        bias (Tensor, optional): beta, shape (C,). None: 0.
        mean (Tensor, optional): Shape (C,), given, not learnt. None: 0.
        var (Tensor, optional): Shape (C,), above 0, likewise. None: 1.

    Returns:
        Tensor: Shape and dtype of ``x``.

    Raises:
        ValueError: If ``x`` has no float dtype, or a parameter is not of its
            channels or on another device.
    """
    _check(x, weight, bias, mean)
    channels, wide = x.shape[1], compute_dtype(x)
    weight = x.new_ones(channels, dtype=wide) if weight is None else weight
    bias = x.new_zeros(channels, dtype=wide) if bias is None else bias
    if mean is not None and how.share == 0:  # BN in test mode
        return torch.batch_norm(x, weight, bias, mean, var, False, 0., 0.,
                                torch.backends.cudnn.enabled)
    if exported() or by_definition() or torch.compiler.is_compiling() or (
            x.numel() == 0):
        return grouped_definition(x, how, weight, bias, mean, var)
    if mean is None:
        mean = x.new_zeros(channels, dtype=wide)
        var = x.new_ones(channels, dtype=wide)
    return GroupedNorm.apply(x, how, weight, bias, mean, var)


def _check(x: Tensor, *parameters: Tensor | None) -> None:
    check_dtype('norm input', x)
    for value in parameters:
        if value is None:
            continue
        if not 3 <= x.dim() <= 5 or value.shape != (x.shape[1], ):
            raise ValueError(
                f'a norm of {len(value)} channels takes (N, {len(value)}, '
                '*spatial) with 1 to 3 spatial dimensions, got shape '
                f'{tuple(x.shape)}')
        check_parameter('norm parameter', value, x)


def grouped_definition(x: Tensor, how: How, weight: Tensor, bias: Tensor,
                       mean: Tensor | None, var: Tensor | None) -> Tensor:
    """The equation, differentiable to any order by PyTorch itself."""
    x_ref = x.to(compute_dtype(x))
    if mean is not None:
        x_ref = (x_ref - per_channel(mean, x)) * per_channel(var, x).rsqrt()
    x_ref = x_ref.unflatten(1, (how.groups, x.shape[1] // how.groups))
    dims = tuple(range(2, x_ref.dim()))
    shifted = centred = x_ref
    if how.centred:
        m = x_ref.mean(dims, keepdim=True)
        centred, shifted = x_ref - m, x_ref - how.share * m
    # Not square(): ONNX has but a Pow for it.
    v = (centred * centred).mean(dims, keepdim=True)
    inv = (how.share * (v + how.eps) + (1 - how.share)).rsqrt()
    y = (shifted * inv).flatten(1, 2) * per_channel(weight, x)
    return (y + per_channel(bias, x)).to(x.dtype)


class GroupedNorm(Function):
    """The same as one scale and one shift a row: a channel of an image."""

    @staticmethod
    def forward(ctx, x: Tensor, how: How, weight: Tensor, bias: Tensor,
                mean: Tensor, var: Tensor) -> Tensor:
        """Args and result are those of :func:`grouped_norm`."""
        ctx.how, ctx.native = how, is_native(x)
        if ctx.native:
            y, m, inv = FORWARD(x, weight, bias, mean, var, how.groups,
                                how.eps, how.share, how.centred)
        else:
            y, m, inv = _forward(x, how, weight, bias, mean, var)
        ctx.save_for_backward(x, weight, bias, mean, var, m, inv)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of x, weight and bias; None for the rest."""
        x, weight, bias, mean, var, m, inv = ctx.saved_tensors
        how = ctx.how
        if torch.is_grad_enabled():  # somebody differentiates the backward
            return _differentiable_backward(
                ctx.needs_input_grad, grad, x, how, weight, bias, mean, var)
        if ctx.native:
            dx, dweight, dbias = BACKWARD(
                grad, x, m, inv, weight, mean, var, how.groups, how.share,
                how.centred)
        else:
            dx, dweight, dbias = _backward(grad, x, how, weight, mean, var, m,
                                           inv)
        return (dx, None, dweight.to(weight.dtype), dbias.to(bias.dtype),
                None, None)


# In PyTorch's operations, where there is no kernel. What is of a row is
# (N, groups, C / groups), what is of a group (N, groups, 1).


def _forward(x, how, weight, bias, mean, var):
    """Return y and, of each group, m and what x_ref is multiplied by."""
    x_wide = x.to(compute_dtype(x))
    gamma, beta, ref, ref_var = _of_rows(how, x_wide, weight, bias, mean, var)
    ref_std = ref_var.sqrt()
    row_mean, row_var = (value.unflatten(1, (how.groups, -1))
                         for value in _moments(x_wide))
    m_row = (row_mean - ref) / ref_std
    v = row_var / ref_var
    if not how.centred:
        m = torch.zeros_like(m_row[:, :, :1])
        v = v.addcmul_(m_row, m_row).mean(2, keepdim=True)
    elif m_row.shape[2] == 1:
        m = m_row
    else:  # the spread within the rows and that between them
        m = m_row.mean(2, keepdim=True)
        m_row -= m
        v = v.addcmul_(m_row, m_row).mean(2, keepdim=True)
    inv = (v * how.share).add_(
        1 - how.share + how.share * how.eps).rsqrt_()
    scale = gamma / ref_std * inv
    centre = torch.addcmul(ref, m, ref_std, value=how.share)
    shift = torch.addcmul(beta, scale, centre, value=-1)
    y = torch.addcmul(_column(shift, x), x_wide, _column(scale, x))
    return y.to(x.dtype), m, inv


def _backward(grad, x, how, weight, mean, var, m, inv):
    x_wide, dy = x.to(compute_dtype(x)), grad.to(compute_dtype(x))
    gamma, ref, ref_var = _of_rows(how, x_wide, weight, mean, var)
    ref_std = ref_var.sqrt()
    centre = torch.addcmul(ref, m, ref_std, value=how.share)
    dims = spatial_dims(x)
    sums = dy.sum(dims).unflatten(1, (how.groups, -1))
    dots = (dy * x_wide).sum(dims).unflatten(1, (how.groups, -1))
    # Of dy times what gamma is multiplied by.
    dots = dots.addcmul_(centre, sums, value=-1).mul_(inv / ref_std)
    scale = gamma / ref_std * inv
    size = x_wide[0].numel() // how.groups
    # What x_ref is multiplied by, in its own gradient.
    slope = (gamma * dots).sum(2, keepdim=True).mul_(inv).mul_(inv)
    slope *= -how.share / size
    level = -slope * m
    if how.centred:
        level -= (gamma * sums).sum(2, keepdim=True).mul_(inv).mul_(
            how.share / size)
    # And x and 1, in that of x.
    slope = slope / ref_var
    level = torch.addcmul(level / ref_std, slope, ref, value=-1)
    dx = torch.addcmul(_column(level, x), x_wide, _column(slope, x))
    dx.addcmul_(dy, _column(scale, x))
    return dx.to(x.dtype), dots.sum(0).flatten(), sums.sum(0).flatten()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each row, shape (N, C)."""
    dims = spatial_dims(x)
    if not x.is_cpu:
        var, mean = torch.var_mean(x, dims, correction=0)
        return mean, var
    mean = x.mean(dims)  # var_mean takes several times as long on a CPU
    return mean, (x - _column(mean, x)).square_().mean(dims)


def _of_rows(how: How, x_wide: Tensor, *values: Tensor) -> list[Tensor]:
    """Numbers a channel, as (1, groups, C / groups)."""
    return [value.to(x_wide.dtype).view(1, how.groups, -1)
            for value in values]


def _column(rows: Tensor, x: Tensor) -> Tensor:
    """A number a row, shaped to broadcast against ``x``."""
    return rows.reshape(*x.shape[:2], *[1] * (x.dim() - 2))


def _differentiable_backward(needed, grad, x, how, weight, bias, mean, var):
    """The same gradients as a graph, through the definition."""
    inputs = {0: x, 2: weight, 3: bias}
    wanted = [i for i in inputs if needed[i]]
    result = [None] * 6
    grads = torch.autograd.grad(
        grouped_definition(x, how, weight, bias, mean, var),
        [inputs[i] for i in wanted], grad, create_graph=True)
    for i, value in zip(wanted, grads, strict=True):
        result[i] = value
    return tuple(result)
