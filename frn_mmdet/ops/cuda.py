"""FRN with TLU for a GPU, in Triton.

A row is one channel of one image. A program takes a tile of R channels of
one image and B of their positions, wherever they lie in memory, so NCHW and
channels_last share the kernels. There are three ways over the rows, which
:func:`plan` chooses from:

- whole: a tile holds rows from end to end, and reads each element once (box
  RoIs, 131 072 rows of 49; C3 and coarser).
- loop: a program goes over its rows twice, hoping that the second time
  they come from the L2 cache (C2 at a batch of 2: 512 rows of 67 200).
- split: rows too few to fill the GPU (the stem: 128 rows of 268 800) are cut
  in segments, one launch for the sums and one for the rest.

Sums run in a fixed order and meet without atomics, so runs are equal bit by
bit. Arithmetic is float32, or float64 for float64 maps. ``library.py``
declares the operators, ``definition.py`` says what they compute.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .definition import compute_dtype
from .library import (
    BACKWARD,
    FRN,
    TLU,
    TLU_BACKWARD,
    format_of,
    is_last,
    memory_format,
    units_of,
)

TILE = 4096  # elements that a program works on at a time
WHOLE = 32768  # the longest row that fits in a program's registers
LAST = 64  # channels a tile spans in channels_last: 128 bytes of half
JOINED = 16  # channels whose parameter gradients a program sums


class Plan(NamedTuple):
    """How a launch covers the rows.

    Attributes:
        channels (int): Channels of a tile, a power of 2.
        positions (int): Positions of a tile, a power of 2.
        whole (bool): A tile holds whole rows.
        splits (int): Segments a row is cut in.
        segment (int): Positions of a segment, a multiple of ``positions``
            (the last one may be shorter).
        warps (int): Warps of a program.
    """

    channels: int
    positions: int
    whole: bool
    splits: int
    segment: int
    warps: int


def plan(images: int, channels: int, size: int, last: bool,
         processors: int) -> Plan:
    """Choose how to go over the rows of a map.

    Args:
        images (int): N.
        channels (int): C.
        size (int): Positions of a row, H * W.
        last (bool): Whether the map is channels_last.
        processors (int): Multiprocessors of the GPU.
    """
    power = triton.next_power_of_2(size)
    limit = triton.next_power_of_2(channels)
    if last:
        tile_channels = min(LAST, limit)
        whole = power * tile_channels <= WHOLE // 2
        positions = power if whole else TILE // tile_channels
    else:
        whole = power <= WHOLE
        positions = power if whole else TILE
        tile_channels = min(limit, max(1, TILE // power)) if whole else 1
    # 16 elements a thread, which is one or two wide loads of half.
    warps = min(32, max(1, tile_channels * positions // 512))
    tiles = images * triton.cdiv(channels, tile_channels)
    splits = 1
    if not whole and tiles < 2 * processors:
        splits = triton.cdiv(4 * processors, tiles)
    segment = positions * triton.cdiv(
        triton.cdiv(size, splits), positions)
    return Plan(tile_channels, positions, whole,
                triton.cdiv(size, segment), segment, warps)


def forward(x, weight, bias, tau, eps_tensor, eps, mean=None, share=1.):
    """Kernel of the operator ``frn``."""
    x = x.contiguous(memory_format=memory_format(x))
    y = torch.empty_like(x)
    inv = x.new_empty(x.shape[:2], dtype=compute_dtype(x))
    if x.numel() == 0:
        return y, inv
    launch = _Launch(x, tau, eps_tensor, mean)
    *parameters, mean = _contiguous(weight, bias, tau, eps_tensor, mean)
    with torch.cuda.device_of(x):
        if launch.splits == 1:
            sums = inv  # not read
        else:
            sums = inv.new_empty((launch.splits, *inv.shape))
            _forward_sums[launch.grid](x, mean, sums, *launch.sizes,
                                       **launch.meta)
        _forward[launch.grid](x, *parameters, float(eps), mean, float(share),
                              sums, y, inv, *launch.sizes, **launch.meta)
    return y, inv


def backward(grad, x, inv, weight, bias, tau, eps_tensor, eps, mean=None,
             share=1.):
    """Kernel of the operator ``frn_backward``."""
    layout = memory_format(x)
    x = x.contiguous(memory_format=layout)
    grad = grad.contiguous(memory_format=layout)
    dx = torch.empty_like(x)
    of_parameters = [inv.new_zeros(x.shape[1]) for _ in range(4)]
    if x.numel() == 0:
        return dx, *of_parameters
    launch = _Launch(x, tau, eps_tensor, mean)
    weight, bias, tau, _, mean = _contiguous(weight, bias, tau, eps_tensor,
                                             mean)
    sums = inv.new_empty((3, launch.splits, *inv.shape))
    inputs = (grad, x, inv, weight, bias, tau, mean, sums)
    with torch.cuda.device_of(x):
        if launch.splits > 1:
            _backward_sums[launch.grid](*inputs, *launch.sizes, **launch.meta)
        _backward[launch.grid](*inputs, float(share), dx, *launch.sizes,
                               **launch.meta)
        images, channels = inv.shape
        _join[(triton.cdiv(channels, JOINED), )](
            sums, inv, weight, *of_parameters, images, channels,
            launch.splits, ACC=launch.meta['ACC'], T=JOINED, num_warps=4)
    return dx, *of_parameters


def tlu(x, tau):
    """Kernel of the operator ``tlu``."""
    x = x.contiguous(memory_format=memory_format(x))
    z = torch.empty_like(x)
    last = is_last(x)
    units, length = units_of(x.shape, last)
    bits = x.new_empty((units, triton.cdiv(length, 8)), dtype=torch.uint8)
    if x.numel():
        grid, meta = _tlu_launch(units, length, last)
        with torch.cuda.device_of(x):
            _tlu[grid](x, tau.contiguous(), z, bits, units, length,
                       x.shape[1], ACC=_acc(x), **meta)
    return z, bits


def tlu_backward(grad, bits, last):
    """Kernel of the operator ``tlu_backward``."""
    grad = grad.contiguous(memory_format=format_of(grad.dim(), last))
    dx = torch.empty_like(grad)
    if not grad.numel():
        return dx, grad.new_zeros(grad.shape[1])
    units, length = units_of(grad.shape, last)
    grid, meta = _tlu_launch(units, length, last)
    # Per block of units and element, or per unit and block of elements.
    shape = (grid[0], length) if last else (units, grid[1])
    sums = grad.new_empty(shape, dtype=compute_dtype(grad))
    with torch.cuda.device_of(grad):
        _tlu_backward[grid](grad, bits, dx, sums, units, length,
                            ACC=_acc(grad), **meta)
    if last:
        dtau = sums.sum(0)
    else:
        dtau = sums.view(grad.shape[0], -1, grid[1]).sum((0, 2))
    return dx, dtau.to(grad.dtype)


def _tlu_launch(units, length, last):
    """The grid, and the tile: R units, B of their elements."""
    b = min(TILE, max(8, triton.next_power_of_2(length)))
    r = max(1, TILE // b)
    return (triton.cdiv(units, r), triton.cdiv(length, b)), dict(
        R=r, B=b, LAST=last, num_warps=8)


class _Launch:
    """What every kernel on a map is launched with."""

    def __init__(self, x, tau, eps_tensor, mean=None):
        images, channels = x.shape[:2]
        size = x.numel() // (images * channels)
        last = memory_format(x) is not torch.contiguous_format
        p = plan(images, channels, size, last, _processors(x.device))
        vector = math.gcd(size, 16)
        self.splits = p.splits
        self.grid = (images * triton.cdiv(channels, p.channels), p.splits)
        self.sizes = (images, channels, size // vector, p.segment, p.splits)
        self.meta = dict(
            R=p.channels,
            B=p.positions,
            WHOLE=p.whole,
            SPLIT=p.splits > 1,
            LAST=last,
            VECTOR=vector,
            TLU=tau is not None,
            EPS=0 if eps_tensor is None else min(2, eps_tensor.numel()),
            MEAN=mean is not None,
            ACC=_acc(x),
            num_warps=p.warps)


def _acc(x):
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _processors(device):
    if device.type != 'cuda':  # Triton's interpreter
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def _contiguous(*parameters):
    """The parameters; in place of one that is absent, one not to be read."""
    return [parameters[0].contiguous() if t is None else t.contiguous()
            for t in parameters]


# The kernels. images, channels: N, C. groups * VECTOR: positions of a row.


@triton.jit
def _rows(images, channels, groups, segment, R: tl.constexpr,
          LAST: tl.constexpr, VECTOR: tl.constexpr):
    """Which rows a program is for, and where they lie in memory.

    Returns their channels, which of those exist, their numbers among all
    rows, where they start, the step between positions, the positions of a
    row, and the first and the end of this program's. The compiler cannot
    tell what divides the length of a row, and so whether loads may be wide,
    unless it sees the product.
    """
    size = groups * VECTOR
    blocks = tl.cdiv(channels, R)
    image = tl.program_id(0) // blocks
    c = tl.program_id(0) % blocks * R + tl.arange(0, R)
    start = image.to(tl.int64) * channels * size
    if LAST:
        start = start + c
        step = channels
    else:
        start = start + c.to(tl.int64) * size
        step = 1
    first = tl.program_id(1) * segment
    end = tl.minimum(first + segment, size)
    return (c, c < channels, image * channels + c, start, step, size, first,
            end)


@triton.jit
def _load(ptr, start, live, at, end, step, ACC: tl.constexpr):
    """A tile of a map, and 0 beyond its ends."""
    where = start[:, None] + at.to(tl.int64)[None, :] * step
    mask = live[:, None] & (at < end)[None, :]
    return tl.load(ptr + where, mask, other=0.).to(ACC)


@triton.jit
def _mean(mean_ptr, c, live, MEAN: tl.constexpr, ACC: tl.constexpr):
    """What is subtracted from the rows; 0 if nothing is."""
    if MEAN:
        mean = tl.load(mean_ptr + c, live, other=0.).to(ACC)
    else:
        mean = tl.zeros(c.shape, ACC)
    return mean


@triton.jit
def _load_centred(ptr, mean, start, live, at, end, step, MEAN: tl.constexpr,
                  ACC: tl.constexpr):
    """A tile of x - mean, and 0 beyond its ends."""
    x = _load(ptr, start, live, at, end, step, ACC)
    if MEAN:
        mask = live[:, None] & (at < end)[None, :]
        x = tl.where(mask, x - mean[:, None], 0.)
    return x


@triton.jit
def _store(ptr, value, start, live, at, end, step):
    where = start[:, None] + at.to(tl.int64)[None, :] * step
    mask = live[:, None] & (at < end)[None, :]
    tl.store(ptr + where, value.to(ptr.dtype.element_ty), mask)


@triton.jit
def _affine(x, scale, bias):
    """Equation (2), rounded alike wherever it is computed."""
    return tl.fma(x, tl.broadcast_to(scale[:, None], x.shape),
                  tl.broadcast_to(bias[:, None], x.shape))


@triton.jit
def _activated(x, scale, bias, tau, TLU: tl.constexpr):
    """Equations (2) and (3)."""
    y = _affine(x, scale, bias)
    if TLU:
        tau = tau[:, None]
        # NaN if tau is, as torch.maximum; backward takes it as not clipped.
        y = tl.where((y < tau) | (tau != tau), tau, y)
    return y


@triton.jit
def _passed(grad, x, scale, bias, tau, TLU: tl.constexpr):
    """The gradient where y was kept, and where tau took its place."""
    if TLU:
        below = _affine(x, scale, bias) < tau[:, None]
        passed = tl.where(below, 0., grad)
        stopped = tl.where(below, grad, 0.)
    else:
        passed = grad
        stopped = tl.zeros_like(grad)
    return passed, stopped


@triton.jit
def _squares(x_ptr, mean, start, live, first, end, step, R: tl.constexpr,
             B: tl.constexpr, MEAN: tl.constexpr, ACC: tl.constexpr):
    """Sums of squares of rows, from ``first`` to ``end``."""
    total = tl.zeros((R, B), ACC)
    for begin in range(first, end, B):
        at = begin + tl.arange(0, B)
        x = _load_centred(x_ptr, mean, start, live, at, end, step, MEAN, ACC)
        total += x * x
    return tl.sum(total, 1)


@triton.jit
def _dots(grad_ptr, x_ptr, mean, start, live, first, end, step, scale, bias,
          tau, R: tl.constexpr, B: tl.constexpr, TLU: tl.constexpr,
          MEAN: tl.constexpr, ACC: tl.constexpr):
    """<dy, x> and the sum of dy where y was kept, the latter where not."""
    dot = tl.zeros((R, B), ACC)
    kept = tl.zeros((R, B), ACC)
    cut = tl.zeros((R, B), ACC)
    for begin in range(first, end, B):
        at = begin + tl.arange(0, B)
        x = _load_centred(x_ptr, mean, start, live, at, end, step, MEAN, ACC)
        grad = _load(grad_ptr, start, live, at, end, step, ACC)
        passed, stopped = _passed(grad, x, scale, bias, tau, TLU)
        dot += passed * x
        kept += passed
        cut += stopped
    return tl.sum(dot, 1), tl.sum(kept, 1), tl.sum(cut, 1)


@triton.jit
def _channels(inv_ptr, weight_ptr, bias_ptr, tau_ptr, row, c, live,
              TLU: tl.constexpr, ACC: tl.constexpr):
    """inv, scale, bias and tau, as backward needs them."""
    weight = tl.load(weight_ptr + c, live, other=0.).to(ACC)
    bias = tl.load(bias_ptr + c, live, other=0.).to(ACC)
    inv = tl.load(inv_ptr + row, live, other=0.)
    tau = bias
    if TLU:
        tau = tl.load(tau_ptr + c, live, other=0.).to(ACC)
    return inv, inv * weight, bias, tau


@triton.jit
def _forward_sums(x_ptr, mean_ptr, sums_ptr, images, channels, groups,
                  segment, splits, R: tl.constexpr, B: tl.constexpr,
                  WHOLE: tl.constexpr, SPLIT: tl.constexpr,
                  LAST: tl.constexpr, VECTOR: tl.constexpr,
                  TLU: tl.constexpr, EPS: tl.constexpr, MEAN: tl.constexpr,
                  ACC: tl.constexpr):
    """Sums of squares of a segment, to (splits, N, C)."""
    c, live, row, start, step, size, first, end = _rows(
        images, channels, groups, segment, R, LAST, VECTOR)
    mean = _mean(mean_ptr, c, live, MEAN, ACC)
    total = _squares(x_ptr, mean, start, live, first, end, step, R, B, MEAN,
                     ACC)
    tl.store(sums_ptr + tl.program_id(1) * images * channels + row, total,
             live)


@triton.jit
def _forward(x_ptr, weight_ptr, bias_ptr, tau_ptr, eps_ptr, eps, mean_ptr,
             share, sums_ptr, y_ptr, inv_ptr, images, channels, groups,
             segment, splits, R: tl.constexpr, B: tl.constexpr,
             WHOLE: tl.constexpr, SPLIT: tl.constexpr, LAST: tl.constexpr,
             VECTOR: tl.constexpr, TLU: tl.constexpr, EPS: tl.constexpr,
             MEAN: tl.constexpr, ACC: tl.constexpr):
    """Equations (1) to (3)."""
    c, live, row, start, step, size, first, end = _rows(
        images, channels, groups, segment, R, LAST, VECTOR)
    mean = _mean(mean_ptr, c, live, MEAN, ACC)
    if WHOLE:
        at = tl.arange(0, B)
        x = _load_centred(x_ptr, mean, start, live, at, size, step, MEAN, ACC)
        total = tl.sum(x * x, 1)
    elif SPLIT:
        total = tl.zeros((R, ), ACC)
        for split in range(0, splits):
            total += tl.load(
                sums_ptr + split * images * channels + row, live, other=0.)
    else:
        total = _squares(x_ptr, mean, start, live, 0, size, step, R, B, MEAN,
                         ACC)

    if EPS == 0:
        shift = tl.zeros((R, ), ACC) + eps
    elif EPS == 1:
        shift = tl.zeros((R, ), ACC) + tl.load(eps_ptr).to(ACC) * eps
    else:
        shift = tl.load(eps_ptr + c, live, other=1.).to(ACC) * eps
    inv = 1. / tl.sqrt(total / size * share + shift)
    tl.store(inv_ptr + row, inv, live)
    scale = inv * tl.load(weight_ptr + c, live, other=0.).to(ACC)
    bias = tl.load(bias_ptr + c, live, other=0.).to(ACC)
    tau = bias
    if TLU:
        tau = tl.load(tau_ptr + c, live, other=0.).to(ACC)

    if WHOLE:
        y = _activated(x, scale, bias, tau, TLU)
        _store(y_ptr, y, start, live, at, size, step)
    else:
        for begin in range(first, end, B):
            at = begin + tl.arange(0, B)
            x = _load_centred(x_ptr, mean, start, live, at, end, step, MEAN,
                              ACC)
            y = _activated(x, scale, bias, tau, TLU)
            _store(y_ptr, y, start, live, at, end, step)


@triton.jit
def _backward_sums(grad_ptr, x_ptr, inv_ptr, weight_ptr, bias_ptr, tau_ptr,
                   mean_ptr, sums_ptr, images, channels, groups, segment,
                   splits, R: tl.constexpr, B: tl.constexpr,
                   WHOLE: tl.constexpr, SPLIT: tl.constexpr,
                   LAST: tl.constexpr, VECTOR: tl.constexpr,
                   TLU: tl.constexpr, EPS: tl.constexpr, MEAN: tl.constexpr,
                   ACC: tl.constexpr):
    """The three sums of a segment, to (3, splits, N, C)."""
    c, live, row, start, step, size, first, end = _rows(
        images, channels, groups, segment, R, LAST, VECTOR)
    inv, scale, bias, tau = _channels(inv_ptr, weight_ptr, bias_ptr, tau_ptr,
                                      row, c, live, TLU, ACC)
    mean = _mean(mean_ptr, c, live, MEAN, ACC)
    dot, kept, cut = _dots(grad_ptr, x_ptr, mean, start, live, first, end,
                           step, scale, bias, tau, R, B, TLU, MEAN, ACC)
    rows = images * channels
    to = sums_ptr + tl.program_id(1) * rows + row
    tl.store(to, dot, live)
    tl.store(to + splits * rows, kept, live)
    tl.store(to + 2 * splits * rows, cut, live)


@triton.jit
def _backward(grad_ptr, x_ptr, inv_ptr, weight_ptr, bias_ptr, tau_ptr,
              mean_ptr, sums_ptr, share, dx_ptr, images, channels, groups,
              segment, splits, R: tl.constexpr, B: tl.constexpr,
              WHOLE: tl.constexpr, SPLIT: tl.constexpr, LAST: tl.constexpr,
              VECTOR: tl.constexpr, TLU: tl.constexpr, EPS: tl.constexpr,
              MEAN: tl.constexpr, ACC: tl.constexpr):
    """Section 3.2: dx = inv * (I - x_hat x_hat^T / N) dx_hat.

    Also writes the three sums, unless ``_backward_sums`` has.
    """
    c, live, row, start, step, size, first, end = _rows(
        images, channels, groups, segment, R, LAST, VECTOR)
    rows = images * channels
    inv, scale, bias, tau = _channels(inv_ptr, weight_ptr, bias_ptr, tau_ptr,
                                      row, c, live, TLU, ACC)
    mean = _mean(mean_ptr, c, live, MEAN, ACC)
    if SPLIT:
        dot = tl.zeros((R, ), ACC)
        for split in range(0, splits):
            dot += tl.load(sums_ptr + split * rows + row, live, other=0.)
    else:
        if WHOLE:
            at = tl.arange(0, B)
            x = _load_centred(x_ptr, mean, start, live, at, size, step, MEAN,
                              ACC)
            grad = _load(grad_ptr, start, live, at, size, step, ACC)
            passed, stopped = _passed(grad, x, scale, bias, tau, TLU)
            dot = tl.sum(passed * x, 1)
            kept = tl.sum(passed, 1)
            cut = tl.sum(stopped, 1)
        else:
            dot, kept, cut = _dots(grad_ptr, x_ptr, mean, start, live, 0,
                                   size, step, scale, bias, tau, R, B, TLU,
                                   MEAN, ACC)
        tl.store(sums_ptr + row, dot, live)
        tl.store(sums_ptr + rows + row, kept, live)
        tl.store(sums_ptr + 2 * rows + row, cut, live)

    pull = scale * inv * inv * (dot / size) * share
    if WHOLE:
        dx = passed * scale[:, None] - x * pull[:, None]
        _store(dx_ptr, dx, start, live, at, size, step)
    else:
        for begin in range(first, end, B):
            at = begin + tl.arange(0, B)
            x = _load_centred(x_ptr, mean, start, live, at, end, step, MEAN,
                              ACC)
            grad = _load(grad_ptr, start, live, at, end, step, ACC)
            passed, stopped = _passed(grad, x, scale, bias, tau, TLU)
            dx = passed * scale[:, None] - x * pull[:, None]
            _store(dx_ptr, dx, start, live, at, end, step)


@triton.jit
def _join(sums_ptr, inv_ptr, weight_ptr, dweight_ptr, dbias_ptr, dtau_ptr,
          deps_ptr, images, channels, splits, ACC: tl.constexpr,
          T: tl.constexpr):
    """Parameter gradients: the sums over segments and images."""
    c = tl.program_id(0) * T + tl.arange(0, T)
    live = c < channels
    many = splits * images
    dweight = tl.zeros((64, T), ACC)
    dbias = tl.zeros((64, T), ACC)
    dtau = tl.zeros((64, T), ACC)
    deps = tl.zeros((64, T), ACC)
    weight = tl.load(weight_ptr + c, live, other=0.).to(ACC)
    for begin in range(0, many, 64):
        of = begin + tl.arange(0, 64)
        mask = (of < many)[:, None] & live[None, :]
        row = (of % images)[:, None] * channels + c[None, :]
        at = of[:, None] * channels + c[None, :]
        inv = tl.load(inv_ptr + row, mask, other=0.)
        dot = tl.load(sums_ptr + at, mask, other=0.) * inv
        dweight += dot
        deps += -0.5 * dot * weight[None, :] * inv * inv
        at += many * channels
        dbias += tl.load(sums_ptr + at, mask, other=0.)
        at += many * channels
        dtau += tl.load(sums_ptr + at, mask, other=0.)
    tl.store(dweight_ptr + c, tl.sum(dweight, 0), live)
    tl.store(dbias_ptr + c, tl.sum(dbias, 0), live)
    tl.store(dtau_ptr + c, tl.sum(dtau, 0), live)
    tl.store(deps_ptr + c, tl.sum(deps, 0), live)


@triton.jit
def _units(units, length, R: tl.constexpr, B: tl.constexpr):
    """Which elements a program is for, where they are, which exist."""
    unit = tl.program_id(0) * R + tl.arange(0, R)
    at = tl.program_id(1) * B + tl.arange(0, B)
    where = unit.to(tl.int64)[:, None] * length + at[None, :]
    return unit, at, where, (unit < units)[:, None] & (at < length)[None, :]


@triton.jit
def _bytes(bits_ptr, unit, units, length, R: tl.constexpr, B: tl.constexpr):
    """Where the bits of the same elements are, and which exist."""
    count = tl.cdiv(length, 8)
    at = tl.program_id(1) * (B // 8) + tl.arange(0, B // 8)
    where = bits_ptr + unit.to(tl.int64)[:, None] * count + at[None, :]
    return where, (unit < units)[:, None] & (at < count)[None, :]


@triton.jit
def _tlu(x_ptr, tau_ptr, z_ptr, bits_ptr, units, length, channels,
         R: tl.constexpr, B: tl.constexpr, LAST: tl.constexpr,
         ACC: tl.constexpr):
    """Equation (3), and a bit for every element, set where it was below."""
    unit, at, where, mask = _units(units, length, R, B)
    x = tl.load(x_ptr + where, mask, other=0.)
    if LAST:
        tau = tl.load(tau_ptr + at, at < length, other=0.)[None, :]
    else:
        tau = tl.load(tau_ptr + unit % channels, unit < units,
                      other=0.)[:, None]
    limit = tau.to(ACC)
    below = (x.to(ACC) < limit) & mask
    z = tl.where(below | (limit != limit), tau, x)
    tl.store(z_ptr + where, z, mask)
    eight = tl.reshape(below.to(tl.int32), (R, B // 8, 8))
    byte = tl.sum(eight << tl.arange(0, 8)[None, None, :], 2)
    to, live = _bytes(bits_ptr, unit, units, length, R, B)
    tl.store(to, byte.to(tl.uint8), live)


@triton.jit
def _tlu_backward(grad_ptr, bits_ptr, dx_ptr, sums_ptr, units, length,
                  R: tl.constexpr, B: tl.constexpr, LAST: tl.constexpr,
                  ACC: tl.constexpr):
    """The gradient of x, and of tau the sums over a tile."""
    unit, at, where, mask = _units(units, length, R, B)
    grad = tl.load(grad_ptr + where, mask, other=0.)
    of, live = _bytes(bits_ptr, unit, units, length, R, B)
    byte = tl.load(of, live, other=0).to(tl.int32)
    eight = (byte[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    below = tl.reshape(eight, (R, B)) != 0
    tl.store(dx_ptr + where, tl.where(below, 0., grad), mask)
    stopped = tl.where(below, grad, 0.).to(ACC)
    if LAST:
        tl.store(sums_ptr + tl.program_id(0) * length + at,
                 tl.sum(stopped, 0), at < length)
    else:
        tl.store(sums_ptr + unit * tl.num_programs(1) + tl.program_id(1),
                 tl.sum(stopped, 1), unit < units)


torch.library.impl(FRN, 'CUDA', forward)
torch.library.impl(BACKWARD, 'CUDA', backward)
torch.library.impl(TLU, 'CUDA', tlu)
torch.library.impl(TLU_BACKWARD, 'CUDA', tlu_backward)
