"""The norms that go on from BN for a GPU, in Triton: see ``grouped.py``.

As on a CPU (``grouped.h``) forward reads the map for its sums and again for
the result, backward the map and the gradient likewise; between them a few
numbers a row say what each is multiplied by. That is three launches, and four
backward with the one that adds up the gradients of the parameters.
"""

import functools
import math
from typing import NamedTuple

import torch
import triton

from . import cuda_grouped_kernels as kernels
from . import cuda_host
from .cuda import (
    KERNELS,
    dtype_of_sums,
    is_double,
    join_launch,
    over_map,
    plan,
    processors_of,
)
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
    over_rows, over_groups = _over(x, groups)
    rows, splits = x.shape[0] * x.shape[1], over_rows.sizes[-1]
    scratch = means.new_empty(rows * (2 * splits + 3))
    sums, lines = scratch.split([rows * (2 * splits + 1), 2 * rows])
    with torch.cuda.device_of(x):
        over_rows.launch(kernels.grouped_sums, x, x, sums, GRAD=False)
        over_groups.launch(
            kernels.grouped_lines, sums, weight, bias, mean, var, float(eps),
            float(share), means, roots, lines, CENTRED=centred)
        over_rows.launch(kernels.grouped_line, x, x, mean, lines, y,
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
    over_rows, over_groups = _over(x, groups)
    images, channels = x.shape[:2]
    rows, splits = images * channels, over_rows.sizes[-1]
    scratch = means.new_empty(rows * (2 * splits + 6))
    sums, lines, parts = scratch.split(
        [rows * (2 * splits + 1), 3 * rows, 2 * rows])
    of_parameters = means.new_empty((2, channels))
    with torch.cuda.device_of(x):
        over_rows.launch(kernels.grouped_sums, grad, x, sums, GRAD=True)
        over_groups.launch(
            kernels.grouped_lines_backward, sums, weight, mean, var, means,
            roots, float(share), lines, parts, CENTRED=centred)
        over_rows.launch(kernels.grouped_line, grad, x, mean, lines, dx,
                         GRAD=True)
        grid, tile = join_launch(2 * channels, images)
        launch(tlu_join, grid, parts, of_parameters, images, 2 * channels, 1,
               ACC=dtype_of_sums(is_double(x)), **tile)
    cuda_host.share(sums=len(scratch))
    return dx, *of_parameters


class _Over(NamedTuple):
    """What every kernel over a map, or over its groups, is launched with."""

    grid: tuple
    sizes: tuple
    meta: dict

    def launch(self, kernel, *arguments, **constants):
        launch(kernel, self.grid, *arguments, *self.sizes, **self.meta,
               **constants)


def _over(x, groups):
    """Return both."""
    return _over_both(
        *x.shape[:2], math.prod(x.shape[2:]),
        memory_format(x) is not torch.contiguous_format, is_double(x),
        x.device, groups)


@functools.lru_cache(maxsize=4096)
def _over_both(images, channels, size, last, double, device, groups):
    p = plan(images, channels, size, last, processors_of(device),
             can_wait=False)
    tiles, sizes, meta = over_map(p, images, channels, size, last, double, 16)
    each = channels // groups
    wide = triton.next_power_of_2(each)
    many = min(max(1, TILE // wide), triton.next_power_of_2(images * groups))
    while many > 1 and triton.cdiv(
            images * groups, many) < processors_of(device):
        many //= 2
    return _Over((tiles * p.splits, ), sizes, meta), _Over(
        (triton.cdiv(images * groups, many), ),
        (images, channels, groups, each, size, p.splits),
        dict(P=many, T=wide, ACC=dtype_of_sums(double), num_warps=4))


# With FRN's: C++ has them in one library, to be loaded once.
cuda_host.register(
    KERNELS | {GROUPED: forward, GROUPED_BACKWARD: backward})
