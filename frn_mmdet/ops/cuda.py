"""FRN with TLU for a GPU, in Triton.

A row is one channel of one image. A program takes a tile of R channels of
one image and B of their positions, wherever they lie in memory, so NCHW and
channels_last share the kernels. There are three ways over the rows, which
:func:`plan` chooses from:

- whole: a tile holds rows from end to end (box RoIs, 131 072 rows of 49; C4
  and coarser).
- meet: a tile holds a segment of a row, and the programs of a row wait for
  each other's sums (C3; C2; the stem, 128 rows of 268 800).
- split: in two launches, one for the sums and one for the rest.

The first two read each element once and keep it in registers. The third is
for what cannot wait: rows too long for their programs to be on the GPU
together, channels_last, float64, GPUs that are not NVIDIA's, and Triton's
interpreter, which runs one program after the other.

Sums run in a fixed order and are never added up by atomics, so runs are equal
bit by bit. Arithmetic is float32, or float64 for float64 maps (but for eps and
share as numbers, which Triton takes as float32). The kernels themselves are in
``cuda_kernels.py``; ``library.py`` declares the operators, ``definition.py``
says what they compute.
"""

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import cuda_host
from . import cuda_kernels as kernels
from .check import check_frn, check_tlu
from .cuda_host import launch
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

# Elements of a tile, as measured on an H100 (docs/benchmarks.md).
TILE = 4096
SMALL = 512  # of rows that are shorter
MOST = 8192  # that fit in a program's registers, twice for backward
LAST = 64  # channels of a tile in channels_last: 128 bytes of half
JOINED = 16  # channels whose parameter gradients a program sums


class Plan(NamedTuple):
    """How a launch covers the rows.

    Attributes:
        way (str): 'whole', 'meet' or 'split'.
        channels (int): Channels of a tile, a power of 2.
        positions (int): Positions of a tile, a power of 2.
        splits (int): Segments a row is cut in.
        segment (int): Positions of a segment, a multiple of 16 (the last
            one may be shorter).
    """

    way: str
    channels: int
    positions: int
    splits: int
    segment: int

    def warps(self, most: int) -> int:
        """Warps of a program whose threads have ``most`` elements at most.

        16 are one or two wide loads of half. 32 leave more loads under way
        where a thread keeps one map, but fewer warps for small tiles.
        """
        tile = self.channels * self.positions
        each = min(most, 16 if tile < TILE else 32)
        return min(32, max(1, tile // (32 * each)))


def plan(images: int, channels: int, size: int, last: bool, processors: int,
         can_wait: bool = True) -> Plan:
    """Choose how to go over the rows of a map.

    Args:
        images (int): N.
        channels (int): C.
        size (int): Positions of a row, H * W.
        last (bool): Whether the map is channels_last.
        processors (int): Multiprocessors of the GPU.
        can_wait (bool): Whether programs can meet. Defaults to True.
    """
    power = triton.next_power_of_2(size)
    limit = triton.next_power_of_2(channels)
    if last:
        wide = min(LAST, limit, MOST // power)
        if wide >= min(LAST // 4, limit):
            return _plan('whole', wide, power, 1, size)
        wide = min(LAST, limit)
    else:
        if power <= MOST:
            wide = min(limit, max(1, SMALL // power))
            while wide > 1 and images * triton.cdiv(
                    channels, wide) < 2 * processors:
                wide //= 2
            return _plan('whole', wide, power, 1, size)
        # The programs of a row must be on the GPU together, beside whatever
        # else runs there, or they would wait forever. A multiprocessor has
        # room for two of them and more.
        for tile in (TILE, MOST):
            splits = triton.cdiv(size, tile)
            if can_wait and 2 * splits <= processors:
                return _plan('meet', 1, tile, splits, size)
        wide = 1
    tiles = images * triton.cdiv(channels, wide)
    splits = triton.cdiv(4 * processors, tiles)
    return _plan('split', wide, TILE // wide, splits, size)


def _plan(way, channels, positions, splits, size):
    segment = 16 * triton.cdiv(triton.cdiv(size, splits), 16)
    return Plan(way, channels, positions, triton.cdiv(size, segment), segment)


def forward(x, weight, bias, tau, eps_tensor, eps, mean=None, share=1.):
    """Kernel of the operator ``frn``."""
    check_frn(x, weight, bias, tau, eps if eps_tensor is None else eps_tensor,
              mean)
    x = x.contiguous(memory_format=memory_format(x))
    y = torch.empty_like(x)
    inv = x.new_empty(x.shape[:2], dtype=compute_dtype(x))
    if x.numel() == 0:
        return y, inv
    way = _way_of(x, tau, eps_tensor, mean, 32)
    *parameters, mean = _contiguous(weight, bias, tau, eps_tensor, mean)
    with torch.cuda.device_of(x):
        words, sums = way.words(x), inv  # sums: not read
        if way.name == 'split':
            sums = inv.new_empty((way.splits, *inv.shape))
            launch(kernels.forward_sums, way.grid,
                   x, mean, sums, *way.sizes, **way.meta)
        launch(kernels.forward, way.grid,
               x, *parameters, float(eps), mean, float(share), sums, words, y,
               inv, *way.sizes, **way.meta)
    cuda_host.share(0 if words is x else words.numel(),
                    0 if sums is inv else sums.numel())
    return y, inv


def backward(grad, x, inv, weight, bias, tau, eps_tensor, eps, mean=None,
             share=1.):
    """Kernel of the operator ``frn_backward``."""
    layout = memory_format(x)
    x = x.contiguous(memory_format=layout)
    grad = grad.contiguous(memory_format=layout)
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return dx, *inv.new_zeros((4, x.shape[1])).unbind()
    way = _way_of(x, tau, eps_tensor, mean, 16)
    weight, bias, tau, _, mean = _contiguous(weight, bias, tau, eps_tensor,
                                             mean)
    sums = inv.new_empty((3, way.splits, *inv.shape))
    inputs = (grad, x, inv, weight, bias, tau, mean, sums)
    of_parameters = [inv.new_empty(x.shape[1]) for _ in range(4)]
    with torch.cuda.device_of(x):
        words = way.words(x)
        if way.name == 'split':
            launch(kernels.backward_sums, way.grid,
                   *inputs, *way.sizes, **way.meta)
        launch(kernels.backward, way.grid,
               *inputs, words, float(share), dx, *way.sizes, **way.meta)
        images, channels = inv.shape
        grid, meta = join_launch(channels, images * way.splits)
        launch(kernels.join, grid,
               sums, inv, weight, *of_parameters, images, channels,
               way.splits, ACC=way.meta['ACC'], **meta)
    cuda_host.share(0 if words is x else words.numel(), sums.numel())
    return dx, *of_parameters


def tlu(x, tau):
    """Kernel of the operator ``tlu``."""
    check_tlu(x, tau)
    x = x.contiguous(memory_format=memory_format(x))
    tau = tau.to(x.dtype).expand(x.shape[1]).contiguous()
    z = torch.empty_like(x)
    last = is_last(x)
    units, length = units_of(x.shape, last)
    bits = x.new_empty((units, triton.cdiv(length, 8)), dtype=torch.uint8)
    if x.numel():
        grid, meta = _tlu_launch(units, length, last)
        with torch.cuda.device_of(x):
            launch(kernels.tlu, grid, x, tau, z, bits, units, length,
                   x.shape[1], ACC=dtype_of_sums(is_double(x)), **meta)
        cuda_host.share()
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
    dtau = grad.new_empty(grad.shape[1])
    parts, pieces = (grid[0], 1) if last else (len(grad), grid[1])
    acc = dtype_of_sums(is_double(grad))
    with torch.cuda.device_of(grad):
        launch(kernels.tlu_backward, grid,
               grad, bits, dx, sums, units, length, ACC=acc, **meta)
        join, meta = join_launch(len(dtau), parts * pieces)
        launch(kernels.tlu_join, join,
               sums, dtau, parts, len(dtau), pieces, ACC=acc, **meta)
    cuda_host.share(sums=sums.numel())
    return dx, dtau


def join_launch(channels, many):
    """Return the grid, and the tile: T channels, ROWS of sums for each."""
    joined = min(JOINED, max(1, triton.next_power_of_2(channels) // 32))
    return (triton.cdiv(channels, joined), ), dict(
        T=joined, ROWS=min(256, triton.next_power_of_2(many)), num_warps=8)


def _tlu_launch(units, length, last):
    """The grid, and the tile: R units, B of their elements."""
    b = min(TILE, max(8, triton.next_power_of_2(length)))
    r = max(1, TILE // b)
    return (triton.cdiv(units, r), triton.cdiv(length, b)), dict(
        R=r, B=b, LAST=last, num_warps=8)


class _Way(NamedTuple):
    """What every kernel on a map is launched with."""

    name: str
    splits: int
    tiles: int
    grid: tuple
    sizes: tuple
    meta: dict

    def words(self, x):
        """Zeros for a launch of programs that meet, see the kernels.

        One for each segment of each row, one for each tile, and one more.
        """
        if self.name != 'meet':
            return x  # not read
        count = x.shape[0] * x.shape[1] * self.splits + self.tiles + 1
        return x.new_zeros(count, dtype=torch.int64)


def _way_of(x, tau, eps_tensor, mean, most):
    """The way over a map, threads having ``most`` elements at most."""
    return _way(
        *x.shape[:2], math.prod(x.shape[2:]),
        memory_format(x) is not torch.contiguous_format,
        is_double(x), x.device, tau is not None,
        0 if eps_tensor is None else min(2, eps_tensor.numel()),
        mean is not None, most)


@functools.lru_cache(maxsize=4096)
def _way(images, channels, size, last, double, device, tlu, eps, mean,
         most):
    # Not on AMD's, whose parts do not all see what one of them stored.
    can_wait = (device.type == 'cuda' and torch.version.cuda is not None
                and not double)
    p = plan(images, channels, size, last, processors_of(device), can_wait)
    tiles, sizes, meta = over_map(p, images, channels, size, last, double,
                                  most)
    return _Way(
        p.way, p.splits, tiles, (tiles * p.splits, ), sizes,
        meta | dict(
            WAY=p.way, SEGMENTS=triton.next_power_of_2(p.splits), TLU=tlu,
            EPS=eps, MEAN=mean))


def over_map(p, images, channels, size, last, double, most):
    """What a plan comes to, for any kernel over a map.

    Returns:
        tuple: Tiles, of which each has a program a segment; the sizes that
        all kernels take; the constants, threads having ``most`` elements at
        most.
    """
    vector = math.gcd(size, 16)
    return (images * triton.cdiv(channels, p.channels),
            (images, channels, size // vector, p.segment, p.splits),
            dict(R=p.channels, B=p.positions, LAST=last, VECTOR=vector,
                 ACC=dtype_of_sums(double), num_warps=p.warps(most)))


def dtype_of_sums(double):
    """What Triton adds up in, and computes."""
    return tl.float64 if double else tl.float32


def is_double(x):
    """Whether a map is computed in float64."""
    return x.dtype == torch.float64


def processors_of(device):
    """How many programs a device runs side by side."""
    if device.type != 'cuda':  # Triton's interpreter
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def _contiguous(*parameters):
    """The parameters; in place of one that is absent, one not to be read."""
    return [parameters[0].contiguous() if t is None else t.contiguous()
            for t in parameters]


KERNELS = {FRN: forward, BACKWARD: backward, TLU: tlu,
           TLU_BACKWARD: tlu_backward}
