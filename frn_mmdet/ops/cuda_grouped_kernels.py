"""The Triton kernels of ``cuda_grouped.py``, which says what they are for.

Arguments are those of ``cuda_kernels.py`` and, where the groups are gone
over: count, groups of an image; each, channels of a group; P and T: groups
and channels of a tile.
"""

import triton
import triton.language as tl

from .cuda_kernels import _inverse_root, _load, _load_centred, _rows, _store


@triton.jit
def grouped_sums(grad_ptr, x_ptr, sums_ptr, images, channels, groups,
                 segment, splits, R: tl.constexpr, B: tl.constexpr,
                 LAST: tl.constexpr, VECTOR: tl.constexpr,
                 GRAD: tl.constexpr, ACC: tl.constexpr):
    """The sums of a segment, to (2, splits, N, C), and behind it the pivots.

    With d = x - pivot of d and d * d, or of dy and dy * d. The pivot is the
    first element of the row: a variance by a difference needs one that is
    near, and the reference may be far.
    """
    tile, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    c, live, row, start, step, size, first, end = _rows(
        tile, split, images, channels, groups, segment, R, LAST, VECTOR)
    pivot = tl.load(x_ptr + start, live, other=0.).to(ACC)
    plain = tl.zeros((R, B), ACC)
    times = tl.zeros((R, B), ACC)
    for begin in range(first, end, B):
        at = begin + tl.arange(0, B)
        d = _load_centred(x_ptr, pivot, start, live, at, end, step, True, ACC)
        value = d
        if GRAD:
            value = _load(grad_ptr, start, live, at, end, step, ACC)
        plain += value
        times += value * d
    rows = images * channels
    to = sums_ptr + split * rows + row
    tl.store(to, tl.sum(plain, 1), live)
    tl.store(to + splits * rows, tl.sum(times, 1), live)
    if split == 0:
        tl.store(sums_ptr + 2 * splits * rows + row, pivot, live)


@triton.jit
def grouped_line(grad_ptr, x_ptr, mean_ptr, lines_ptr, out_ptr, images,
                 channels, groups, segment, splits, R: tl.constexpr,
                 B: tl.constexpr, LAST: tl.constexpr, VECTOR: tl.constexpr,
                 GRAD: tl.constexpr, ACC: tl.constexpr):
    """X - mean, 1 and dy, times what (3, N, C) has for a row."""
    tile, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    c, live, row, start, step, size, first, end = _rows(
        tile, split, images, channels, groups, segment, R, LAST, VECTOR)
    mean = tl.load(mean_ptr + c, live, other=0.).to(ACC)
    rows = images * channels
    on_x = tl.load(lines_ptr + row, live, other=0.)
    one = tl.load(lines_ptr + rows + row, live, other=0.)
    on_grad = one
    if GRAD:
        on_grad = tl.load(lines_ptr + 2 * rows + row, live, other=0.)
    for begin in range(first, end, B):
        at = begin + tl.arange(0, B)
        d = _load_centred(x_ptr, mean, start, live, at, end, step, True, ACC)
        out = d * on_x[:, None] + one[:, None]
        if GRAD:
            grad = _load(grad_ptr, start, live, at, end, step, ACC)
            out += grad * on_grad[:, None]
        _store(out_ptr, out, start, live, at, end, step)


@triton.jit
def _groups(sums_ptr, weight_ptr, mean_ptr, var_ptr, images, channels, count,
            each, splits, P: tl.constexpr, T: tl.constexpr,
            ACC: tl.constexpr):
    """Which groups a program is for, and what is known of their rows.

    Returns the groups, which of them exist; their channels, their rows, which
    exist; the two sums of a row over all segments, and pivot - mean; of its
    channel weight and 1 / sqrt(var).
    """
    g = tl.program_id(0) * P + tl.arange(0, P)
    k = tl.arange(0, T)
    there = g < images * count
    live = there[:, None] & (k < each)[None, :]
    c = (g % count * each)[:, None] + k[None, :]
    row = (g * each)[:, None] + k[None, :]
    rows = images * channels
    plain = tl.zeros((P, T), ACC)
    times = tl.zeros((P, T), ACC)
    for split in range(splits):
        at = sums_ptr + split * rows + row
        plain += tl.load(at, live, other=0.)
        times += tl.load(at + splits * rows, live, other=0.)
    far = tl.load(sums_ptr + 2 * splits * rows + row, live, other=0.)
    far -= tl.load(mean_ptr + c, live, other=0.).to(ACC)
    weight = tl.load(weight_ptr + c, live, other=0.).to(ACC)
    var = tl.load(var_ptr + c, live, other=1.).to(ACC)
    return (g, there, c, row, live, plain, times, far, weight,
            _inverse_root(var, ACC))


@triton.jit
def grouped_lines(sums_ptr, weight_ptr, bias_ptr, mean_ptr, var_ptr, eps,
                  share, means_ptr, roots_ptr, lines_ptr, images, channels,
                  count, each, size, splits, P: tl.constexpr,
                  T: tl.constexpr, CENTRED: tl.constexpr, ACC: tl.constexpr):
    """Of each group m and 1 / sqrt(..), and the lines of y."""
    g, there, c, row, live, plain, times, far, weight, inv = _groups(
        sums_ptr, weight_ptr, mean_ptr, var_ptr, images, channels, count,
        each, splits, P, T, ACC)
    rows = images * channels
    near = plain / size
    spread = tl.maximum(times / size - near * near, 0.)
    centre = near + far
    m = tl.zeros((P, ), ACC)
    if CENTRED:
        m += tl.sum(centre * inv, 1) / each
    off = centre * inv - m[:, None]
    square = tl.where(live, spread * inv * inv + off * off, 0.)
    s = tl.zeros((P, ), ACC) + share
    v = tl.sum(square, 1) / each
    root = _inverse_root(s * (v + eps) + (1. - s), ACC)
    tl.store(means_ptr + g, m, there)
    tl.store(roots_ptr + g, root, there)
    bias = tl.load(bias_ptr + c, live, other=0.).to(ACC)
    scale = weight * root[:, None]
    tl.store(lines_ptr + row, scale * inv, live)
    tl.store(lines_ptr + rows + row, bias - scale * (m * s)[:, None], live)


@triton.jit
def grouped_lines_backward(sums_ptr, weight_ptr, mean_ptr, var_ptr,
                           means_ptr, roots_ptr, share, lines_ptr, parts_ptr,
                           images, channels, count, each, size, splits,
                           P: tl.constexpr, T: tl.constexpr,
                           CENTRED: tl.constexpr, ACC: tl.constexpr):
    """The lines of dx; and what each row adds to the other gradients.

    Those of weight and bias, to (N, 2, C).
    """
    g, there, c, row, live, plain, times, far, weight, inv = _groups(
        sums_ptr, weight_ptr, mean_ptr, var_ptr, images, channels, count,
        each, splits, P, T, ACC)
    rows = images * channels
    m = tl.load(means_ptr + g, there, other=0.)
    root = tl.load(roots_ptr + g, there, other=0.)
    s = tl.zeros((P, ), ACC) + share
    # Of dy times what gamma is multiplied by.
    dot = (times * inv + (far * inv - (s * m)[:, None]) * plain) * (
        root[:, None])
    to = parts_ptr + (g // count * 2 * channels)[:, None] + c
    tl.store(to, dot, live)
    tl.store(to + channels, plain, live)
    # What x_ref is multiplied by, in its own gradient, and 1.
    many = each * size
    slope = -s * tl.sum(weight * dot, 1) * root * root / many
    level = -slope * m
    if CENTRED:
        level -= s * tl.sum(weight * plain, 1) * root / many
    tl.store(lines_ptr + row, slope[:, None] * inv * inv, live)
    tl.store(lines_ptr + rows + row, level[:, None] * inv, live)
    tl.store(lines_ptr + 2 * rows + row, weight * root[:, None] * inv, live)
