"""The Triton kernels: every way over the rows, and what they compile to."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st

from frn_mmdet.ops import cuda
from frn_mmdet.ops.definition import frn_definition

F64 = torch.float64
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


@settings(max_examples=300, deadline=None)
@given(
    images=st.integers(1, 3000), channels=st.integers(1, 3000),
    size=st.integers(1, 300000), last=st.booleans(),
    processors=st.sampled_from([4, 108, 132]))
def test_a_plan_covers_every_row_once(images, channels, size, last,
                                      processors):
    p = cuda.plan(images, channels, size, last, processors)
    assert p.channels == triton.next_power_of_2(p.channels)
    assert p.positions == triton.next_power_of_2(p.positions)
    assert p.segment * p.splits >= size
    assert p.segment * (p.splits - 1) < size  # no segment is empty
    assert p.segment % p.positions == 0
    assert p.splits == 1 or not p.whole
    assert not p.whole or p.positions >= size
    assert p.channels * p.positions <= cuda.WHOLE
    assert 1 <= p.warps <= 32


@pytest.mark.parametrize('shape, whole, splits', [
    ((2, 64, 400 * 672), False, True),  # stem
    ((1, 64, 200 * 336), False, True),  # C2 of one image
    ((2, 256, 200 * 336), False, False),  # C2
    ((2, 512, 100 * 168), True, False),  # C3
    ((2, 1024, 50 * 84), True, False),  # C4
    ((512, 256, 7 * 7), True, False),  # box RoIs
])
def test_the_way_over_the_maps_of_a_detector(shape, whole, splits):
    """At 800 x 1344, on the 132 multiprocessors of an H100."""
    p = cuda.plan(*shape, last=False, processors=132)
    assert p.whole is whole
    assert (p.splits > 1) is splits
    if splits:
        assert shape[0] * shape[1] * p.splits >= 2 * 132


# name: shape, channels_last, multiprocessors
WAYS = {
    'whole': ((2, 5, 13, 21), False, 4),
    'whole, many rows': ((5, 70, 7, 7), False, 4),
    'whole, one position': ((2, 3, 1, 1), False, 4),
    'loop': ((1, 2, 182, 181), False, 1),
    'split': ((1, 2, 182, 181), False, 4),
    'whole, last': ((2, 5, 7, 9), True, 4),
    'loop, last': ((2, 70, 20, 20), True, 1),
    'split, last': ((2, 70, 20, 20), True, 4),
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('with_tau', [True, False])
@pytest.mark.parametrize('eps, share', [
    (1e-3, None), (1, None), ('C', None), ('C', .3)])
def test_every_way_is_the_definition(monkeypatch, way, with_tau, eps, share):
    """With a share there is a mean, too."""
    shape, last, processors = WAYS[way]
    monkeypatch.setattr(cuda, '_processors', lambda device: processors)
    make = partial(torch.randn, dtype=F64, device=DEVICE)
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
    launch = cuda._Launch(x, tau, tensor)
    assert launch.meta['WHOLE'] is way.startswith('whole')
    assert launch.meta['SPLIT'] is way.startswith('split')
    assert launch.meta['LAST'] is last

    y, inv = cuda.forward(x, weight, bias, tau, tensor, number, *others)
    got = cuda.backward(grad, x, inv, weight, bias, tau, tensor, number,
                        *others)
    per_channel = None if tensor is None else tensor.expand(shape[1]).clone()
    leaves = [None if v is None else v.clone().requires_grad_()
              for v in (x, weight, bias, tau, per_channel)]
    expected = frn_definition(
        *leaves[:4], number if tensor is None else leaves[4], *others)
    torch.testing.assert_close(y, expected.detach())
    present = [v for v in leaves if v is not None]
    of = [g for g, v in zip(got, leaves, strict=True) if v is not None]
    for a, b in zip(of, torch.autograd.grad(expected, present, grad),
                    strict=True):
        torch.testing.assert_close(a, b)
    assert y.stride() == got[0].stride() == x.stride()


COMPILE = """
import re
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from frn_mmdet.ops import cuda

MAPS = ('x_ptr', 'y_ptr', 'z_ptr', 'grad_ptr', 'dx_ptr')


def compile(kernel, meta, maps, arch):
    signature, attrs = {}, {}
    constants = {}
    for i, name in enumerate(kernel.arg_names):
        if name in meta:
            signature[name] = 'constexpr'
            constants[i, ] = meta[name]
        elif name.endswith('_ptr'):
            signature[name] = maps if name in MAPS else '*fp32'
            if name == 'bits_ptr':
                signature[name] = '*u8'
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


for channels, positions, whole, split, last, mean in [
        (64, 64, True, False, False, False),
        (1, 32768, True, False, False, False),
        (1, 4096, False, False, False, False),
        (1, 4096, False, True, False, False),
        (64, 64, False, True, True, False),
        (1, 32768, True, False, False, True),
        (64, 64, False, True, True, True)]:
    meta = dict(R=channels, B=positions, WHOLE=whole, SPLIT=split, LAST=last,
                VECTOR=8, TLU=True, EPS=0, MEAN=mean, ACC=tl.float32)
    for maps in ('*bf16', '*fp32'):
        for kernel in (cuda._forward_sums, cuda._forward,
                       cuda._backward_sums, cuda._backward):
            if kernel.__name__.endswith('_sums') and not split:
                continue
            text = compile(kernel, meta, maps, ARCH).asm['ptx']
            wide = len(re.findall(r'ld.global\\S*v4', text))
            print('wide' if wide else 'narrow', kernel.__name__, meta, maps)
compile(cuda._join, dict(T=cuda.JOINED, ACC=tl.float32, num_warps=4), '*fp32',
        ARCH)
for last in (False, True):
    for kernel in (cuda._tlu, cuda._tlu_backward):
        meta = dict(R=4, B=1024, LAST=last, ACC=tl.float32)
        text = compile(kernel, meta, '*bf16', ARCH).asm['ptx']
        wide = len(re.findall(r'ld.global\\S*v4', text))
        print('wide' if wide else 'narrow', kernel.__name__, meta)
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
