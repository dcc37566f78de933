"""Weight standardization for a GPU, in Triton, a program for each filter.

It goes over its filter more than once, which stays in the nearest cache, and
backward computes the statistics anew. The order within a filter does not
matter, so channels_last weights are filters as well.
"""

import torch
import triton
import triton.language as tl

from .library import STANDARDIZE, STANDARDIZE_BACKWARD, memory_format

TILE = 4096  # elements that a program works on at a time
TINY = tl.constexpr(1e-30)  # in the place of a deviation of 0, divides 0


def forward(weight, eps):
    """Kernel of the operator ``standardize``."""
    weight = weight.contiguous(memory_format=memory_format(weight))
    out = torch.empty_like(weight)
    if weight.numel():
        with torch.cuda.device_of(weight):
            _forward[(len(weight), )](weight, out, float(eps),
                                      **_filters(weight))
    return out


def backward(grad, weight, eps):
    """Kernel of the operator ``standardize_backward``."""
    layout = memory_format(weight)
    weight = weight.contiguous(memory_format=layout)
    grad = grad.contiguous(memory_format=layout)
    dw = torch.empty_like(weight)
    if weight.numel():
        with torch.cuda.device_of(weight):
            _backward[(len(weight), )](grad, weight, dw, float(eps),
                                       **_filters(weight))
    return dw


def _filters(weight):
    """What both kernels are launched with."""
    size = weight[0].numel()
    tile = min(TILE, triton.next_power_of_2(size))
    double = weight.dtype == torch.float64
    return dict(size=size, B=tile, ACC=tl.float64 if double else tl.float32,
                num_warps=max(1, tile // 512))


@triton.jit
def _load(ptr, start, at, size, ACC: tl.constexpr):
    """A part of a filter, and 0 beyond its end."""
    return tl.load(ptr + start + at, at < size, other=0.).to(ACC)


@triton.jit
def _statistics(weight_ptr, start, size, B: tl.constexpr, ACC: tl.constexpr):
    """The mean of a filter, and its deviation, the unbiased one.

    The mean is that of a sum in ACC and, what it is off by, that of the
    differences, or a constant filter would not be 0.
    """
    total = tl.zeros((B, ), ACC)
    for begin in range(0, size, B):
        total += _load(weight_ptr, start, begin + tl.arange(0, B), size, ACC)
    mean = tl.sum(total, 0) / size
    rest = tl.zeros((B, ), ACC)
    squares = tl.zeros((B, ), ACC)
    for begin in range(0, size, B):
        at = begin + tl.arange(0, B)
        w = _load(weight_ptr, start, at, size, ACC) - mean
        w = tl.where(at < size, w, 0.)
        rest += w
        squares += w * w
    off = tl.sum(rest, 0) / size
    squares = tl.maximum(tl.sum(squares, 0) - off * off * size, 0.)
    return mean + off, tl.sqrt(squares / (size - 1))


@triton.jit
def _forward(weight_ptr, out_ptr, eps, size, B: tl.constexpr,
             ACC: tl.constexpr):
    """(w - mean) / (std + eps)."""
    start = tl.program_id(0).to(tl.int64) * size
    mean, std = _statistics(weight_ptr, start, size, B, ACC)
    scale = 1. / (tl.maximum(std, TINY) + eps)
    for begin in range(0, size, B):
        at = begin + tl.arange(0, B)
        w = _load(weight_ptr, start, at, size, ACC)
        tl.store(out_ptr + start + at,
                 ((w - mean) * scale).to(out_ptr.dtype.element_ty), at < size)


@triton.jit
def _backward(grad_ptr, weight_ptr, dw_ptr, eps, size, B: tl.constexpr,
              ACC: tl.constexpr):
    """(g - mean(g)) / (std + eps) - c <g, c> / ((std + eps)^2 (n-1) std)."""
    start = tl.program_id(0).to(tl.int64) * size
    mean, std = _statistics(weight_ptr, start, size, B, ACC)
    sums = tl.zeros((B, ), ACC)
    dots = tl.zeros((B, ), ACC)
    for begin in range(0, size, B):
        at = begin + tl.arange(0, B)
        w = _load(weight_ptr, start, at, size, ACC) - mean
        g = _load(grad_ptr, start, at, size, ACC)  # 0 beyond the end
        sums += g
        dots += g * w
    std = tl.maximum(std, TINY)
    scale = 1. / (std + eps)
    mean_grad = tl.sum(sums, 0) / size
    pull = tl.sum(dots, 0) * scale / std * scale / (size - 1)
    for begin in range(0, size, B):
        at = begin + tl.arange(0, B)
        w = _load(weight_ptr, start, at, size, ACC) - mean
        g = _load(grad_ptr, start, at, size, ACC)
        dw = (g - mean_grad) * scale - w * pull
        tl.store(dw_ptr + start + at, dw.to(dw_ptr.dtype.element_ty),
                 at < size)


torch.library.impl(STANDARDIZE, 'CUDA', forward)
torch.library.impl(STANDARDIZE_BACKWARD, 'CUDA', backward)
