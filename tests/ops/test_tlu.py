"""``tlu`` against the formula, on each kernel."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from frn_mmdet.ops import tlu, use_kernel
from frn_mmdet.ops.library import unpack

GPU = torch.cuda.is_available()
F64 = torch.float64


@pytest.fixture(params=['plain', 'cpp', 'triton'])
def operation(request):
    """(x, tau, grad) -> (z, dx, dtau), on each kernel."""

    def run(x, tau, grad):
        x, tau = x.detach().requires_grad_(), tau.detach().requires_grad_()
        z = tlu(x, tau)
        return z, *torch.autograd.grad(z, (x, tau), grad)

    def interpreted(x, tau, grad):
        from frn_mmdet.ops import cuda
        from frn_mmdet.ops.library import is_last
        z, bits = cuda.tlu(x, tau.to(x.dtype).expand(x.shape[1]))
        dx, dtau = cuda.tlu_backward(grad, bits, is_last(x))
        dtau = dtau.sum().view(1) if tau.numel() == 1 else dtau
        return z, dx, dtau.to(tau.dtype)

    if request.param != 'triton':
        with use_kernel('plain' if request.param == 'plain' else 'native'):
            yield run
    elif GPU:
        with torch.device('cuda'), use_kernel('native'):
            yield run
    else:
        yield interpreted


def expected(x, tau, grad):
    """max(x, tau); 1 where x >= tau for x, and where x < tau for tau."""
    column = tau.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))
    below = x < column
    over = [d for d in range(x.dim()) if d != 1]
    dtau = (grad * below).to(F64).sum(over)
    if tau.numel() == 1:
        dtau = dtau.sum().view(1)
    return torch.maximum(x, column), grad * ~below, dtau


@settings(max_examples=25, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    dtype=st.sampled_from([torch.float32, F64, torch.bfloat16,
                           torch.float16]),
    last=st.booleans(), one=st.booleans(), seed=st.integers(0, 9))
def test_any_shape(operation, shape, dtype, last, one, seed):
    torch.manual_seed(seed)
    # Halves, so that there are many ties.
    x = torch.randn(shape).mul(2).round().div(2).to(dtype)
    grad = torch.randn(shape).to(dtype)
    if last and len(shape) > 3:
        layout = (torch.channels_last if len(shape) == 4 else
                  torch.channels_last_3d)
        x = x.contiguous(memory_format=layout)
    tau = torch.randn(1 if one else shape[1]).mul(2).round().div(2)
    z, dx, dtau = operation(x, tau, grad)
    true = expected(x, tau, grad)
    assert torch.equal(z, true[0])
    assert torch.equal(dx, true[1])
    assert dtau.dtype == tau.dtype
    half = dtype not in (torch.float32, F64)
    tol = 5e-2 if half else 1e-5
    # A sum of many is off by the size of what was added; of half types each
    # channel's is rounded before they become one.
    atol = tol + (4e-3 if half else 1e-6) * grad.float().norm().item()
    torch.testing.assert_close(dtau.to(F64), true[2], rtol=tol, atol=atol)


@pytest.mark.parametrize('last', [False, True])
def test_large_maps_go_in_tiles(operation, last):
    torch.manual_seed(0)
    # Of 1024 positions, or of as many channels and positions.
    x, grad = torch.randn(2, 70, 33, 35), torch.randn(2, 70, 33, 35)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    tau = torch.randn(70)
    z, dx, dtau = operation(x, tau, grad)
    true = expected(x, tau, grad)
    assert torch.equal(z, true[0])
    assert torch.equal(dx, true[1])
    assert z.stride() == x.stride()
    torch.testing.assert_close(dtau.to(F64), true[2], rtol=1e-5, atol=1e-4)
    for a, b in zip((z, dx, dtau), operation(x, tau, grad), strict=True):
        assert torch.equal(a, b)


def test_empty_and_strided(operation):
    z, dx, dtau = operation(torch.zeros(0, 3, 4, 4), torch.zeros(3),
                            torch.zeros(0, 3, 4, 4))
    assert z.shape == dx.shape == (0, 3, 4, 4)
    assert dtau.eq(0).all()
    x, tau = torch.randn(2, 6, 8, 9)[:, ::2, 1:, ::3], torch.randn(3)
    grad = torch.randn(2, 3, 1, 1).expand(x.shape)
    for a, b in zip(operation(x, tau, grad), expected(x, tau, grad),
                    strict=True):
        torch.testing.assert_close(a.to(F64), b.to(F64), rtol=1e-5, atol=1e-5)


def test_nan_stays(operation):
    x = torch.tensor([[torch.nan, 1., -1.]])
    z = operation(x, torch.zeros(1), torch.ones(1, 3))[0]
    assert z.isnan().tolist() == [[True, False, False]]


@pytest.mark.parametrize('dtype', [torch.float32, F64, torch.bfloat16,
                                   torch.float16])
@pytest.mark.parametrize('shape, last', [
    ((3, 20), False), ((2, 20, 3, 3), True), ((2, 20, 5, 7), False),
    ((2, 20, 5, 7), True)])
def test_a_threshold_of_nan_shows(operation, dtype, shape, last):
    """As in torch.maximum; its gradient is that of what is not clipped."""
    x, tau = torch.randn(shape).to(dtype), torch.zeros(20)
    x.view(-1)[5] = torch.nan
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    tau[3] = tau[17] = torch.nan
    z, dx, dtau = operation(x, tau, torch.ones_like(x))
    true = expected(x, tau, torch.ones_like(x))
    torch.testing.assert_close(z, true[0], equal_nan=True)
    assert torch.equal(dx, true[1])
    torch.testing.assert_close(dtau.to(F64), true[2])


@pytest.mark.parametrize('shape', [(2, 3, 0, 5), (2, 3, 0), (0, 3, 0, 0),
                                   (2, 0), (2, 0, 4, 4), (0, 3)])
@pytest.mark.parametrize('one', [False, True])
def test_maps_of_nothing_teach_nothing(operation, shape, one):
    x = torch.zeros(shape)
    z, dx, dtau = operation(x, torch.ones(1 if one else shape[1]), x)
    assert z.shape == dx.shape == shape
    assert torch.equal(dtau, torch.zeros(1 if one else shape[1]))


@pytest.mark.parametrize('choice', ['plain', 'native'])
def test_other_dtypes_and_devices_are_refused(choice):
    x, tau = torch.ones(2, 3, 4, 4), torch.full((3, ), .5)
    with use_kernel(choice):
        for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64):
            with pytest.raises(ValueError, match='TLU input has dtype torch'):
                tlu(x.to(dtype), tau)
            with pytest.raises(ValueError, match='TLU tau has dtype torch'):
                tlu(x, tau.to(dtype))
        with pytest.raises(ValueError, match='TLU tau is on meta'):
            tlu(x, tau.to('meta'))


@pytest.mark.parametrize('last', [False, True])
def test_gradcheck_twice(last):
    x = torch.randn(2, 3, 5, 2, dtype=F64)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    inputs = (x.requires_grad_(), torch.randn(3, dtype=F64).requires_grad_())
    assert torch.autograd.gradcheck(tlu, inputs)
    assert torch.autograd.gradgradcheck(tlu, inputs)


@pytest.mark.parametrize('shape', [(2, 3, 7, 5), (2, 11), (0, 3, 4, 4)])
def test_opcheck(shape):
    x = torch.randn(shape, requires_grad=True)
    tau = torch.randn(shape[1], requires_grad=True)
    tlu(x, tau)  # loads the kernel
    torch.library.opcheck(torch.ops.frn_mmdet.tlu.default, (x, tau))
    bits = torch.ops.frn_mmdet.tlu(x, tau)[1]
    torch.library.opcheck(torch.ops.frn_mmdet.tlu_backward.default,
                          (torch.randn(shape), bits, len(shape) == 2))


def test_backward_keeps_a_bit_an_element():
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    tau = torch.zeros(8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.nbytes) or t, lambda t: t):
        tlu(x, tau)
    assert sum(kept) == x.numel() // 8


def test_the_bits_are_what_was_clipped():
    for x in (torch.randn(2, 3, 5, 3),
              torch.randn(2, 3, 5, 3).to(memory_format=torch.channels_last)):
        tau = torch.randn(3)
        bits = torch.ops.frn_mmdet.tlu(x, tau)[1]
        last = x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(unpack(bits, x.shape, last),
                           x < tau.view(1, 3, 1, 1))


def test_compiled_whole():
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    tau = torch.randn(3, requires_grad=True)
    compiled = torch.compile(tlu, fullgraph=True, backend='aot_eager')
    got = torch.autograd.grad(compiled(x, tau).square().sum(), (x, tau))
    true = torch.autograd.grad(tlu(x, tau).square().sum(), (x, tau))
    for a, b in zip(got, true, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('reentrant', [True, False])
def test_a_checkpoint(reentrant):
    """Backward asks for what it kept, and forward runs again for that."""
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    tau = torch.randn(3, requires_grad=True)
    checkpoint(tlu, x, tau, use_reentrant=reentrant).square().sum().backward()
    expected = torch.autograd.grad(tlu(x, tau).square().sum(), (x, tau))
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(tau.grad, expected[1])


@pytest.mark.parametrize('dtype', [torch.float16, F64])
@pytest.mark.parametrize('channels', [1, 3])
def test_tau_of_another_dtype(dtype, channels):
    """Its gradient is of its dtype, and tau may change before backward."""
    x = torch.randn(2, 3, 5, 5).to(dtype)
    tau = torch.randn(channels, requires_grad=True)
    z = tlu(x, tau)
    true = torch.maximum(x, tau.to(dtype).view(1, -1, 1, 1))
    assert torch.equal(z, true)
    with torch.no_grad():
        tau.add_(1)
    z.sum().backward()
    assert tau.grad.dtype == torch.float32
    clipped = (x < z).sum((0, 2, 3)).float()
    assert torch.equal(tau.grad, clipped if channels == 3 else
                       clipped.sum().view(1))
