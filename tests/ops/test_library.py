"""The operators, as torch.library and torch.compile see them."""

import re

import pytest
import torch
from fresh import python
from torch import nn

from frn_mmdet import FRN, TLU, frn, kernel_for
from frn_mmdet.ops.definition import frn_definition

F64 = torch.float64
OPS = torch.ops.frn_mmdet
assert kernel_for('cpu').name == 'cpp'


def arguments(shape=(2, 3, 7, 5), tau=True, eps=None, dtype=F64):
    torch.manual_seed(0)
    channels = shape[1]
    values = [
        torch.randn(shape, dtype=dtype),
        torch.randn(channels, dtype=dtype),
        torch.randn(channels, dtype=dtype),
        torch.randn(channels, dtype=dtype) if tau else None,
        torch.rand(eps, dtype=dtype) + .1 if eps else None,
    ]
    return [v if v is None else v.requires_grad_() for v in values]


@pytest.mark.parametrize('shape, tau, eps', [
    ((2, 3, 7, 5), True, None), ((2, 3, 9), False, 3),
    ((0, 3, 4, 4), True, 1)])
def test_opcheck(shape, tau, eps):
    args = arguments(shape, tau, eps)
    torch.library.opcheck(OPS.frn.default, (*args, 1e-3))
    grad, inv = torch.randn(shape, dtype=F64), OPS.frn(*args, 1e-3)[1]
    torch.library.opcheck(OPS.frn_backward.default,
                          (grad, args[0], inv, *args[1:], 1e-3))


def test_opcheck_in_channels_last():
    x, *rest = arguments((2, 3, 4, 5), dtype=torch.float32)
    x = x.detach().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(OPS.frn.default, (x.requires_grad_(), *rest, 1e-3))
    # neither format: both kernels work on a copy
    x = torch.randn(2, 3, 8, 5)[:, :, ::2].requires_grad_()
    torch.library.opcheck(OPS.frn.default, (x, *rest, 1e-3))


@pytest.mark.parametrize('shape, layout', [
    ((3, 2, 3, 3), torch.channels_last),
    ((3, 4, 1), torch.contiguous_format),
    ((0, 4, 1, 1), torch.contiguous_format),
])
def test_opcheck_of_standardize(shape, layout):
    weight, grad = (
        torch.randn(shape, dtype=F64).contiguous(memory_format=layout)
        .requires_grad_() for _ in range(2))
    torch.library.opcheck(OPS.standardize.default, (weight, 1e-5))
    torch.library.opcheck(
        OPS.standardize_backward.default, (grad, weight, 1e-5))


@pytest.mark.parametrize('layout', [torch.contiguous_format,
                                    torch.channels_last])
def test_opcheck_of_grouped(layout):
    x, grad = (torch.randn(2, 4, 3, 5).contiguous(memory_format=layout)
               for _ in range(2))
    weight, bias, mean, var = torch.rand(4, 4) + .1
    args = 2, 1e-5, .3, True
    torch.library.opcheck(OPS.grouped.default,
                          (x, weight, bias, mean, var, *args))
    _, means, roots = OPS.grouped(x, weight, bias, mean, var, *args)
    torch.library.opcheck(
        OPS.grouped_backward.default,
        (grad, x, means, roots, weight, mean, var, 2, .3, True))
    for wrong in ((x[:0], weight), (x, weight[:3]), (x[:, :3], weight)):
        with pytest.raises(RuntimeError, match='arguments do not fit'):
            OPS.grouped(*wrong, bias, mean, var, *args)


@pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
def test_compiled_whole(backend):
    x, weight, bias, tau, _ = arguments(dtype=torch.float32)

    def block(x, weight, bias, tau):
        return frn(x * 2, weight, bias, tau) + 1

    compiled = torch.compile(block, fullgraph=True, backend=backend)
    inputs = (x, weight, bias, tau)
    for function in (compiled, block):
        got = [function(*inputs)]
        got += torch.autograd.grad(got[0].square().sum(), inputs)
        if function is compiled:
            first = got
    for a, b in zip(first, got, strict=True):
        torch.testing.assert_close(a, b)


def test_a_compiled_block_has_no_transposing_copies(monkeypatch):
    """Inductor puts convolutions in channels_last; FRN takes it as it is.

    A pass over memory is left for what comes in, and one for add and TLU.
    """
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code
    monkeypatch.setattr(config, 'force_layout_optimization', True)
    monkeypatch.setattr(config, 'force_disable_caches', True)
    torch.compiler.reset()
    torch.manual_seed(0)
    block = Bottleneck()
    x = torch.randn(2, 8, 12, 12, requires_grad=True)
    leaves = [x, *block.parameters()]

    def step(function):
        y = function(x)
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    got, codes = run_and_get_code(
        lambda: step(torch.compile(block, fullgraph=True)))
    passes = [len(re.findall(r'^ +cpp_fused\w+\(', code, re.MULTILINE))
              for code in codes]
    assert passes == [2, 2]
    for a, b in zip(got, step(block), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Bottleneck(nn.Module):
    """Three convolutions with FRN, an add and a TLU."""

    def __init__(self):
        super().__init__()
        convolutions = [nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, padding=1),
                        nn.Conv2d(4, 8, 1)]
        self.body = nn.Sequential(
            *[layer for conv in convolutions for layer in (
                conv, FRN(conv.out_channels, tlu=conv.out_channels == 4))])
        self.tlu = TLU(8)

    def forward(self, x):
        return self.tlu(self.body(x) + x)


def test_compiled_before_the_kernel_was_loaded():
    text = python("""
import torch
from frn_mmdet import FRN
layer = torch.compile(FRN(3, tlu=True), fullgraph=True, backend='aot_eager')
layer(torch.randn(2, 3, 4, 4, requires_grad=True)).sum().backward()
print('whole')
""")
    assert 'whole' in text


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('shape', [(2, 3, 50, 40), (3, 64, 40, 40)])
def test_the_number_of_threads_does_not_show(shape, last):
    x, weight, bias, tau, _ = arguments(shape, dtype=torch.float32)
    if last:
        x = x.detach().contiguous(memory_format=torch.channels_last)
    inputs = (x.detach().requires_grad_(), weight, bias, tau)
    grad = torch.randn(shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = frn(*inputs)
            results.append([out, *torch.autograd.grad(out, inputs, grad)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_an_exported_model_consists_of_pytorchs_operators():
    layer = FRN(3, tlu=True, learnable_eps=True).eval()
    x = torch.randn(2, 3, 4, 4)
    program = torch.export.export(layer, (x, ))
    used = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in used if 'frn' in name.lower()]
    traced = torch.jit.trace(layer, x)
    assert 'frn_mmdet::' not in str(traced.graph)
    for other in (program.module(), traced):
        torch.testing.assert_close(other(x), layer(x))


def test_an_exported_model_takes_few_passes_over_a_map():
    """Its square, one product, beta, tau: each is one in other runtimes."""
    layer = FRN(3, tlu=True).eval()
    layer.weight.data.uniform_(0.5, 2)
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        program = torch.export.export(layer, (x, )).run_decompositions()
    passes = [node.target for node in program.graph.nodes
              if node.op == 'call_function'
              and getattr(node.meta.get('val'), 'shape', None) == x.shape
              # of torch 2.7, from float32 to float32
              and node.target is not torch.ops.aten._to_copy.default]
    assert passes == [
        torch.ops.aten.mul.Tensor, torch.ops.aten.mul.Tensor,
        torch.ops.aten.add.Tensor, torch.ops.aten.maximum.default]
    torch.testing.assert_close(program.module()(x), layer(x))


def test_autocast_keeps_the_dtype_of_the_map():
    layer, x = FRN(3, tlu=True), torch.randn(2, 3, 4, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert layer(x).dtype == torch.float32
        assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_triton_behind_the_operator_with_pythons_autograd():
    """What a GPU runs, on the interpreter in place of the CPU's kernel."""
    if torch.cuda.is_available():
        inputs = [None if v is None else v.detach().cuda().requires_grad_()
                  for v in arguments(eps=1)]
        assert torch.autograd.gradcheck(frn, inputs)
        assert torch.autograd.gradgradcheck(frn, inputs)
        torch.library.opcheck(OPS.frn.default, (*inputs, 1.))
        return
    text = python("""
import torch
from torch.autograd import gradcheck, gradgradcheck
from frn_mmdet.ops import cuda
from frn_mmdet.ops.library import BACKWARD, FRN, TLU, TLU_BACKWARD
for operator, kernel in (
        (FRN, cuda.forward), (BACKWARD, cuda.backward), (TLU, cuda.tlu),
        (TLU_BACKWARD, cuda.tlu_backward)):
    torch.library.impl(operator, 'CPU', kernel)
torch.manual_seed(0)
f64 = dict(dtype=torch.float64, requires_grad=True)
x = torch.randn(2, 3, 3, 2, **f64)
weight, bias, tau = (torch.randn(3, **f64) for _ in range(3))
frn, tlu = torch.ops.frn_mmdet.frn, torch.ops.frn_mmdet.tlu
for operator, args in (
        (frn, (x, weight, bias, None, torch.tensor([.1], **f64), 1e-3)),
        (frn, (x, weight, bias, tau, torch.rand(3, **f64), 1e-3)),
        (tlu, (x, tau))):
    first = lambda *args: operator(*args)[0]
    assert gradcheck(first, args, fast_mode=True)
    assert gradgradcheck(first, args, fast_mode=True)
    torch.library.opcheck(operator.default, args)
print('right')
""", TRITON_INTERPRET='1')
    assert 'right' in text


def test_double_backward_keeps_the_history():
    """A third derivative, which needs the graph of the second."""
    x, weight, bias, _, _ = arguments((1, 2, 3, 2), tau=False)

    def third(function):
        total = function(x, weight, bias).pow(3).sum()
        for _ in range(3):
            total = torch.autograd.grad(
                total, x, create_graph=True)[0].square().sum()
        return total

    torch.testing.assert_close(third(frn), third(frn_definition))
