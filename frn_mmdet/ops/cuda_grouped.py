"""The norms that go on from BN for a GPU, in Triton: see ``grouped.py``.

As on a CPU (``grouped.h``) forward reads the map for its sums and again for
the result, backward the map and the gradient likewise; between them a few
numbers a row say what each is multiplied by. That is three launches, and four
backward with the one that adds up the gradients of the parameters.
"""

import math

import torch
import triton

from . import cuda_grouped_kernels as kernels
from . import cuda_host
from .cuda import dtype_of_sums, join_launch, plan, processors_of
from .cuda_host import launch
from .cuda_kernels import tlu_join
from .definition import compute_dtype
from .library import GROUPED, GROUPED_BACKWARD, memory_format

TILE = 1024  # channels of a tile over the groups, but for larger groups


def forward(x, weight, bias, mean, var, groups, eps, share, centred):
    """Kernel of the operator ``grouped``."""
    x = x.contiguous(memory_format=memory_format(x))
    weight, bias, mean, var = (
        value.contiguous() for value in (weight, bias, mean, var))
    y = torch.empty_like(x)
    means, roots = (x.new_empty((len(x), groups), dtype=compute_dtype(x))
                    for _ in range(2))
    over_map, over_groups = _over_map(x), _over_groups(x, groups)
    rows, splits = x.shape[0] * x.shape[1], over_map['sizes'][-1]
    scratch = means.new_empty(rows * (2 * splits + 3))
    sums, lines = scratch.split([rows * (2 * splits + 1), 2 * rows])
    with torch.cuda.device_of(x):
        _launch(kernels.grouped_sums, over_map, x, x, sums, GRAD=False)
        _launch(kernels.grouped_lines, over_groups, sums, weight, bias, mean,
                var, float(eps), float(share), means, roots, lines,
                last=(splits, ), CENTRED=centred)
        _launch(kernels.grouped_line, over_map, x, x, mean, lines, y,
                GRAD=False)
    cuda_host.share(sums=len(scratch))
    return y, means, roots


def backward(grad, x, means, roots, weight, mean, var, groups, share,
             centred):
    """Kernel of the operator ``grouped_backward``."""
    x = x.contiguous(memory_format=memory_format(x))
    grad = grad.contiguous(memory_format=memory_format(x))
    weight, mean, var = (value.contiguous() for value in (weight, mean, var))
    dx = torch.empty_like(x)
    over_map, over_groups = _over_map(x), _over_groups(x, groups)
    images, channels = x.shape[:2]
    rows, splits = images * channels, over_map['sizes'][-1]
    scratch = means.new_empty(rows * (2 * splits + 6))
    sums, lines, parts = scratch.split(
        [rows * (2 * splits + 1), 3 * rows, 2 * rows])
    of_parameters = means.new_empty((2, channels))
    with torch.cuda.device_of(x):
        _launch(kernels.grouped_sums, over_map, grad, x, sums, GRAD=True)
        _launch(kernels.grouped_lines_backward, over_groups, sums, weight,
                mean, var, means, roots, float(share), lines, parts,
                last=(splits, ), CENTRED=centred)
        _launch(kernels.grouped_line, over_map, grad, x, mean, lines, dx,
                GRAD=True)
        grid, tile = join_launch(2 * channels, images)
        launch(tlu_join, grid, parts, of_parameters, images, 2 * channels, 1,
               ACC=dtype_of_sums(x), **tile)
    cuda_host.share(sums=len(scratch))
    return dx, *of_parameters


def _launch(kernel, over, *arguments, last=(), **constants):
    launch(kernel, over['grid'], *arguments, *over['sizes'], *last,
           **over['tile'], **constants)


def _over_map(x):
    """How a launch covers the rows: segments of them, each read alone."""
    images, channels = x.shape[:2]
    size = math.prod(x.shape[2:])
    last = memory_format(x) is not torch.contiguous_format
    p = plan(images, channels, size, last, processors_of(x.device),
             can_wait=False)
    vector = math.gcd(size, 16)
    return dict(
        grid=(images * triton.cdiv(channels, p.channels) * p.splits, ),
        sizes=(images, channels, size // vector, p.segment, p.splits),
        tile=dict(R=p.channels, B=p.positions, LAST=last, VECTOR=vector,
                  ACC=dtype_of_sums(x), num_warps=p.warps(16)))


def _over_groups(x, groups):
    """How a launch covers the groups: P of them, each whole."""
    images, channels = x.shape[:2]
    each = channels // groups
    wide = triton.next_power_of_2(each)
    many = min(max(1, TILE // wide), triton.next_power_of_2(images * groups))
    while many > 1 and triton.cdiv(
            images * groups, many) < processors_of(x.device):
        many //= 2
    return dict(
        grid=(triton.cdiv(images * groups, many), ),
        sizes=(images, channels, groups, each, math.prod(x.shape[2:])),
        tile=dict(P=many, T=wide, ACC=dtype_of_sums(x), num_warps=4))


KERNELS = {GROUPED: forward, GROUPED_BACKWARD: backward}
