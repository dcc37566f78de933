"""The Triton kernels: every way over the rows, and what they compile to."""

import os
import subprocess
import sys
from functools import partial
from itertools import product

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st

from frn_mmdet.ops import cuda
from frn_mmdet.ops.definition import frn_definition

F64 = torch.float64
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
# float32 takes other ways than float64 on a GPU alone.
DTYPES = [F64, torch.float32] if DEVICE == 'cuda' else [F64]


@settings(max_examples=300, deadline=None)
@given(
    images=st.integers(1, 3000), channels=st.integers(1, 3000),
    size=st.integers(1, 300000), last=st.booleans(),
    processors=st.sampled_from([4, 108, 132]), can_wait=st.booleans())
def test_a_plan_covers_every_row_once(images, channels, size, last,
                                      processors, can_wait):
    p = cuda.plan(images, channels, size, last, processors, can_wait)
    assert p.channels == triton.next_power_of_2(p.channels)
    assert p.positions == triton.next_power_of_2(p.positions)
    assert p.segment * p.splits >= size
    assert p.segment * (p.splits - 1) < size  # no segment is empty
    assert p.segment % 16 == 0
    assert p.way in ('whole', 'split') or can_wait and p.splits > 1
    assert p.way == 'split' or p.positions >= min(size, p.segment)
    # Twice as many programs as a row has fit on the GPU with one on each.
    assert p.way != 'meet' or 2 * p.splits <= processors
    assert p.channels * p.positions <= cuda.MOST
    for most in (16, 32):
        assert 1 <= p.warps(most) <= 32
        threads = 32 * p.warps(most)
        assert p.channels * p.positions <= most * threads


@pytest.mark.parametrize('shape, way', [
    ((2, 64, 400 * 672), 'meet'),  # stem
    ((1, 64, 200 * 336), 'meet'),  # C2 of one image
    ((2, 256, 200 * 336), 'meet'),  # C2
    ((2, 512, 100 * 168), 'meet'),  # C3
    ((2, 1024, 50 * 84), 'whole'),  # C4
    ((512, 256, 7 * 7), 'whole'),  # box RoIs
    ((1, 256, 7 * 11), 'whole'),  # P7
])
def test_the_way_over_the_maps_of_a_detector(shape, way):
    """At 800 x 1344, on the 132 multiprocessors of an H100."""
    p = cuda.plan(*shape, last=False, processors=132)
    assert p.way == way
    programs = shape[0] * p.splits * triton.cdiv(shape[1], p.channels)
    assert programs >= 132


# name: shape, channels_last. Without a GPU, those that meet are split.
WAYS = {
    'whole': ((2, 5, 13, 21), False),
    'whole, many rows': ((5, 70, 7, 7), False),
    'whole, one position': ((2, 3, 1, 1), False),
    'meet': ((1, 2, 182, 181), False),
    'meet, two segments': ((3, 2, 91, 93), False),
    'whole, last': ((2, 5, 7, 9), True),
    'split, last': ((2, 70, 30, 31), True),
    'split, last, one segment': ((3, 330, 23, 23), True),
}


# (with_tau, eps, share) of each: all of them on rows that are whole, and on
# those that are split, over the ways to lay them out.
ARGUMENTS = list(product((True, False), (
    (1e-3, None), (1, None), ('C', None), ('C', .3))))
PAIRS = [(way, *ARGUMENTS[i]) for kind in (True, False) for i, way in zip(
    (0, 1, 2, 3, 6, 7, 4, 5), 2 * [
        way for way in WAYS if way.startswith('whole') is kind], strict=True)]


@pytest.mark.parametrize('way, with_tau, arguments', PAIRS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_every_way_is_the_definition(way, with_tau, arguments, dtype):
    """With a share there is a mean, too."""
    (shape, last), (eps, share) = WAYS[way], arguments
    make = partial(torch.randn, dtype=dtype, device=DEVICE)
    torch.manual_seed(0)
    x, grad = make(shape), make(shape)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight, bias, tau = (make(shape[1]) for _ in range(3))
    tau = tau if with_tau else None
    number = 1e-3 if eps == 1e-3 else 1.
    tensor = None if number != 1 else make(
        shape[1] if eps == 'C' else 1).abs() + .1
    others = () if share is None else (make(shape[1]) * 3, share)
    launch = cuda._way_of(x, tau, tensor, None, 16)
    can_wait = DEVICE == 'cuda' and dtype is not F64
    assert launch.name == ('split' if way.startswith('meet') and not can_wait
                          else way.partition(',')[0])
    assert launch.meta['LAST'] is last

    y, inv = cuda.forward(x, weight, bias, tau, tensor, number, *others)
    got = cuda.backward(grad, x, inv, weight, bias, tau, tensor, number,
                        *others)
    per_channel = None if tensor is None else tensor.expand(shape[1])
    leaves = [None if v is None else v.to(F64, copy=True).requires_grad_()
              for v in (x, weight, bias, tau, per_channel)]
    expected = frn_definition(
        *leaves[:4], number if tensor is None else leaves[4],
        *(v.to(F64) if torch.is_tensor(v) else v for v in others))
    present = [v for v in leaves if v is not None]
    gradients = torch.autograd.grad(expected, present, grad.to(F64))
    of = [g for g, v in zip(got, leaves, strict=True) if v is not None]
    for a, b in zip((y, *of), (expected, *gradients), strict=True):
        # On a GPU eps and share come as float32.
        relative = 1e-5 if dtype is not F64 else (
            1e-10 if DEVICE == 'cpu' else 1e-7)
        torch.testing.assert_close(a.to(F64), b, rtol=relative,
                                   atol=relative * b.abs().max().item())
    assert y.stride() == got[0].stride() == x.stride()


COMPILE = """
import re
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from frn_mmdet.ops import cuda_grouped_kernels as grouped
from frn_mmdet.ops import cuda_kernels as kernels

MAPS = ('x_ptr', 'y_ptr', 'z_ptr', 'grad_ptr', 'dx_ptr', 'out_ptr')


def compile(kernel, meta, maps, arch):
    signature, attrs = {}, {}
    constants = {}
    for i, name in enumerate(kernel.arg_names):
        if name in meta:
            signature[name] = 'constexpr'
            constants[i, ] = meta[name]
        elif name.endswith('_ptr'):
            signature[name] = maps if name in MAPS else '*fp32'
            signature[name] = dict(bits_ptr='*u8', words_ptr='*i64').get(
                name, signature[name])
        else:
            signature[name] = (
                'fp32' if name in ('eps', 'share') else 'i32')
        # As torch allocates, and as segments are cut.
        if name.endswith('_ptr') or name in ('segment', 'channels', 'length'):
            attrs[i, ] = [['tt.divisibility', 16]]
    source = ASTSource(kernel, signature, constants, attrs)
    warps = meta.get('num_warps', 8)
    return triton.compile(source, target=GPUTarget('cuda', arch, 32),
                          options=dict(num_warps=warps))


BOTH = ('*bf16', '*fp32')
for way, channels, positions, last, mean, types in [
        ('whole', 8, 64, False, False, BOTH),
        ('whole', 1, 8192, False, False, BOTH[:1]),
        ('meet', 1, 4096, False, False, BOTH),
        ('split', 1, 4096, False, False, BOTH[:1]),
        ('split', 64, 64, True, False, BOTH),
        ('whole', 1, 8192, False, True, BOTH[:1]),
        ('split', 64, 64, True, True, BOTH[:1])]:
    meta = dict(R=channels, B=positions, WAY=way, SEGMENTS=16, LAST=last,
                VECTOR=8, TLU=True, EPS=0, MEAN=mean, ACC=tl.float32,
                num_warps=channels * positions // 512)
    for maps in types:
        for kernel in (kernels.forward_sums, kernels.forward,
                       kernels.backward_sums, kernels.backward):
            if kernel.__name__.endswith('_sums') and way != 'split':
                continue
            text = compile(kernel, meta, maps, ARCH).asm['ptx']
            wide = len(re.findall(r'ld.global\\S*v4', text))
            print('wide' if wide else 'narrow', kernel.__name__, meta, maps)
compile(kernels.join, dict(T=16, ROWS=64, ACC=tl.float32), '*fp32', ARCH)
for last in (False, True):
    for kernel in (kernels.tlu, kernels.tlu_backward):
        meta = dict(R=4, B=1024, LAST=last, ACC=tl.float32)
        text = compile(kernel, meta, '*bf16', ARCH).asm['ptx']
        wide = len(re.findall(r'ld.global\\S*v4', text))
        print('wide' if wide else 'narrow', kernel.__name__, meta)
for last, grad in ((False, True), (True, False)):
    for kernel in (grouped.grouped_sums, grouped.grouped_line):
        meta = dict(R=64 if last else 1, B=64 if last else 4096, LAST=last,
                    VECTOR=8, GRAD=grad, ACC=tl.float32)
        text = compile(kernel, meta, '*bf16', ARCH).asm['ptx']
        wide = len(re.findall(r'ld.global\\S*v4', text))
        print('wide' if wide else 'narrow', kernel.__name__, meta)
for kernel in (grouped.grouped_lines, grouped.grouped_lines_backward):
    compile(kernel, dict(P=2, T=64, CENTRED=True, ACC=tl.float32), '*fp32',
            ARCH)
print('all')
"""


@pytest.mark.parametrize('arch', [
    pytest.param(80, marks=pytest.mark.slow), 90])
def test_compiles_for_a_gpu_with_loads_of_16_bytes(tmp_path, arch):
    """A100 and H100: Triton needs no GPU to compile for one."""
    result = subprocess.run(
        [sys.executable, '-c', COMPILE.replace('ARCH', str(arch))],
        env={**os.environ, 'TRITON_INTERPRET': '0',
             'TRITON_CACHE_DIR': str(tmp_path)},
        capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[-1] == 'all'
    assert [line for line in lines[:-1] if not line.startswith('wide')] == []
