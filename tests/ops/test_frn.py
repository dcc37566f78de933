"""``frn`` against the paper's formulas in float64 NumPy, written anew."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from frn_mmdet import frn, use_kernel
from frn_mmdet.ops.definition import frn_definition

# A new fixture for every example would only be the same kernel again.
ONE_KERNEL = dict(suppress_health_check=[HealthCheck.function_scoped_fixture])

F64 = torch.float64
SHAPES = [(2, 3, 7), (2, 3, 7, 7), (1, 4, 13, 21), (2, 2, 3, 4, 5),
          (3, 5, 1, 1)]


def paper(x, weight, bias, tau, eps, grad, mean=None, share=1.):
    """Output and gradients, row by row, as section 3 writes them.

    With a mean it is subtracted first, and the mean square counts for a
    share.
    """
    if mean is not None:
        x = x - mean.reshape(1, -1, *[1] * (x.ndim - 2))
    rows = x.reshape(*x.shape[:2], -1)
    grads = grad.reshape(rows.shape)
    out = np.empty_like(rows)
    dx = np.empty_like(rows)
    dw, db, dt, de = (np.zeros(x.shape[1]) for _ in range(4))
    for b in range(rows.shape[0]):
        for c in range(rows.shape[1]):
            row, n = rows[b, c], rows.shape[2]
            root = np.sqrt(share * (row**2).sum() / n + eps[c])
            x_hat = row / root
            y = weight[c] * x_hat + bias[c]
            out[b, c] = np.maximum(y, tau[c])
            below = y < tau[c]
            dy = np.where(below, 0, grads[b, c])
            dt[c] += grads[b, c][below].sum()
            dw[c] += dy @ x_hat
            db[c] += dy.sum()
            d_hat = weight[c] * dy
            jacobian = (
                np.eye(n) - share * np.outer(x_hat, x_hat) / n) / root
            dx[b, c] = jacobian @ d_hat
            de[c] += d_hat @ row * -0.5 / root**3
    return out.reshape(x.shape), dx.reshape(x.shape), dw, db, dt, de


def tensors(shape, dtype=F64, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    channels = shape[1]
    values = [
        rng.normal(size=shape) * scale,
        rng.normal(size=channels),
        rng.normal(size=channels),
        rng.normal(size=channels) * 0.3,
        rng.uniform(1e-4, 1e-1, size=channels),
    ]
    return [
        torch.tensor(v, dtype=dtype, requires_grad=True) for v in values
    ]


def arrays(values):
    return [v.detach().to(F64).cpu().numpy() for v in values]


@pytest.mark.parametrize('shape', SHAPES)
def test_output_and_all_gradients_equal_the_paper(kernel, shape):
    inputs = tensors(shape)
    out = kernel(*inputs)
    grad = torch.randn(shape, dtype=F64)
    got = [out] + list(torch.autograd.grad(out, inputs, grad))
    expected = paper(*arrays(inputs), grad.cpu().numpy())
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.detach().cpu().numpy(), b, rtol=1e-10,
                                   atol=1e-12)


@pytest.mark.parametrize('shape, last, share', [
    ((2, 3, 7), False, 1.), ((2, 3, 7, 7), False, .25),
    ((1, 4, 13, 21), False, 0.), ((2, 2, 3, 4, 5), False, .25),
    ((3, 5, 1, 1), False, 1.), ((3, 5, 1, 1), False, 0.),
    ((2, 3, 7, 7), True, 1.), ((2, 3, 7, 7), True, 0.),
    ((1, 4, 13, 21), True, .25)])
def test_with_a_mean_and_a_share(kernel, shape, share, last):
    inputs = tensors(shape)
    if last:
        inputs[0] = inputs[0].detach().contiguous(
            memory_format=torch.channels_last).requires_grad_()
    mean = torch.randn(shape[1], dtype=F64) * 3
    out = kernel(*inputs, mean=mean, share=share)
    grad = torch.randn(shape, dtype=F64)
    got = [out] + list(torch.autograd.grad(out, inputs, grad))
    expected = paper(*arrays(inputs), *arrays([grad, mean]), share)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.detach().cpu().numpy(), b, rtol=1e-9,
                                   atol=1e-11)


@pytest.mark.parametrize('eps_is_tensor', [True, False])
def test_eps_counts_in_var(kernel, eps_is_tensor):
    x, weight, bias, tau, eps = tensors((2, 3, 7, 5))
    inputs = [x, weight, bias, tau] + ([eps] if eps_is_tensor else [])
    eps = eps if eps_is_tensor else .3
    mean, var = torch.randn(3, dtype=F64), torch.rand(3, dtype=F64) + .5
    out = kernel(x, weight, bias, tau, eps, mean, var, .4)
    grad = torch.randn(2, 3, 7, 5, dtype=F64)
    got = [out] + list(torch.autograd.grad(out, inputs, grad))
    total = (eps * var).detach()
    *expected, deps = paper(*arrays([x, weight, bias, tau, total]),
                            grad.cpu().numpy(), mean.cpu().numpy(), .4)
    if eps_is_tensor:
        expected.append(deps * var.cpu().numpy())
    # On a GPU eps and share come as float32.
    tolerance = 1e-7 if x.is_cuda else 1e-9
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.detach().cpu().numpy(), b,
                                   rtol=tolerance, atol=tolerance / 100)


def test_a_neutral_reference_changes_no_bit(kernel):
    inputs = tensors((2, 3, 13, 21), torch.float32)[:4]
    grad = torch.randn(2, 3, 13, 21)
    runs = []
    for mean, var in ((None, None), (torch.zeros(3), torch.ones(3))):
        out = kernel(*inputs, 1e-6, mean, var)
        runs.append([out, *torch.autograd.grad(out, inputs, grad)])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_far_from_zero_the_mean_is_exact(kernel):
    """x - mean, not x * scale - mean * scale, which would cancel."""
    x = torch.randn(2, 3, 16, 16) + 1e4
    mean = torch.full((3, ), 1e4)
    ones, zeros = torch.ones(3), torch.zeros(3)
    expected = paper(*arrays([x, ones, zeros]), np.full(3, -np.inf),
                     np.full(3, 1e-6), np.zeros(x.shape),
                     mean.double().cpu().numpy())[0]
    np.testing.assert_allclose(
        kernel(x, ones, zeros, mean=mean).cpu().numpy(), expected, rtol=1e-5,
        atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_mean_in_half_precision(kernel, dtype):
    """The difference is taken in float32, as the square is."""
    x = (torch.randn(2, 3, 16, 16) * 50 + 300).to(dtype)
    mean = torch.tensor([301.3, 290.1, 305.7])
    weight, bias = torch.full((3, ), 2.), torch.full((3, ), .5)
    out = kernel(x, weight, bias, mean=mean)
    expected = torch.tensor(paper(
        *arrays([x, weight, bias]), np.full(3, -np.inf), np.full(3, 1e-6),
        np.zeros(x.shape), mean.double().cpu().numpy())[0])
    error = (out.to(F64) - expected).abs().max()
    rounding = (expected.to(dtype).to(F64) - expected).abs().max()
    # Triton's interpreter rounds bfloat16 towards 0
    assert error <= (4 if kernel is not frn else 2) * rounding


@pytest.mark.parametrize('name', ['mean', 'var'])
def test_a_reference_is_not_learnt(name):
    given = {name: torch.ones(3, requires_grad=True)}
    with pytest.raises(ValueError, match=f'{name} is given, not learnt'):
        frn(torch.randn(2, 3, 4, 4), torch.ones(3), torch.zeros(3), **given)


def test_without_threshold(kernel):
    x, weight, bias, _, _ = inputs = tensors((2, 3, 5, 6))
    out = kernel(x, weight, bias)
    grad = torch.randn(2, 3, 5, 6, dtype=F64)
    got = [out] + list(torch.autograd.grad(out, inputs[:3], grad))
    expected = paper(*arrays(inputs[:3]), np.full(3, -np.inf),
                     np.full(3, 1e-6), grad.cpu().numpy())
    for a, b in zip(got, expected[:4], strict=True):
        np.testing.assert_allclose(a.detach().cpu().numpy(), b, rtol=1e-10,
                                   atol=1e-12)


@pytest.mark.parametrize('shape, with_tau', [
    ((2, 3, 7), True), ((2, 3, 4, 3), True), ((1, 2, 5, 7), False),
    ((2, 2, 2, 3, 2), False), ((3, 2, 1, 1), True)])
def test_gradcheck_twice(kernel, shape, with_tau):
    x, weight, bias, tau, eps = tensors(shape)
    inputs = (x, weight, bias, tau if with_tau else None, eps[:1])
    if kernel is not frn:  # an interpreter: slow, and without the operator
        assert torch.autograd.gradcheck(kernel, inputs, fast_mode=True)
        return
    assert torch.autograd.gradcheck(frn, inputs)
    assert torch.autograd.gradgradcheck(frn, inputs)


@pytest.mark.parametrize('with_tau', [True, False])
def test_gradcheck_twice_with_a_mean(kernel, with_tau):
    x, weight, bias, tau, eps = tensors((2, 3, 4, 3))
    inputs = (x, weight, bias, tau if with_tau else None, eps)
    mean = torch.randn(3, dtype=F64)

    def run(*args):
        return kernel(*args, mean=mean, share=.3)

    if kernel is not frn:
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
        return
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_rms_norm_is_equation_1(kernel):
    x = torch.randn(2, 3, 9, 11, dtype=F64)
    ones, zeros = torch.ones(3, dtype=F64), torch.zeros(3, dtype=F64)
    rms = nn.functional.rms_norm(x.flatten(2), (99, ), eps=1e-6)
    torch.testing.assert_close(kernel(x, ones, zeros), rms.view_as(x))


def test_a_tie_goes_to_y(kernel):
    """A zero-initialised gamma makes every position of the map a tie."""
    x = torch.randn(2, 3, 4, 4, dtype=F64, requires_grad=True)
    weight, bias, tau = (
        torch.zeros(3, dtype=F64, requires_grad=True) for _ in range(3))
    kernel(x, weight, bias, tau).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((3, ), 32., dtype=F64))
    assert tau.grad.eq(0).all()
    assert weight.grad.ne(0).all()


@pytest.mark.parametrize('size', [300., 6e4])
def test_half_precision_does_not_overflow(kernel, size):
    """|x| = 300 squares to more than float16 can hold."""
    signs = torch.randn(2, 3, 16, 16).sign()
    x = (signs * size).half().requires_grad_()
    weight, bias = torch.full((3, ), 2.), torch.full((3, ), .5)
    tau = torch.zeros(3)
    out = kernel(x, weight, bias, tau)
    assert out.dtype == torch.float16
    torch.testing.assert_close(
        out.float(), (signs * 2 + .5).clamp(min=0), rtol=0, atol=2e-3)
    out.float().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_as_good_as_rounding_the_result(kernel, dtype):
    """flash-attention's rule: at most twice the error of the rounding."""
    inputs = tensors((2, 4, 13, 21), torch.float32)
    inputs[0] = inputs[0].detach().to(dtype).requires_grad_()
    out = kernel(*inputs)
    grad = torch.randn(out.shape).to(dtype)
    got = [out] + list(torch.autograd.grad(out, inputs, grad))
    expected = paper(*arrays(inputs), grad.to(F64).cpu().numpy())
    for a, b in zip(got, expected, strict=True):
        exact = torch.tensor(b)
        rounding = (exact.to(a.dtype).to(F64) - exact).abs().max().item()
        error = (a.detach().to(F64) - exact).abs().max().item()
        if kernel is not frn and dtype is torch.bfloat16:
            rounding *= 2  # Triton's interpreter rounds it towards 0
        assert error <= 2 * rounding + 1e-5 * exact.abs().max().item()


def test_one_by_one_maps_with_learnt_eps(kernel):
    """x / sqrt(x^2 + eps) is a soft sign, whose slope eps makes nonzero."""
    x, weight, bias, _, eps = tensors((4, 3, 1, 1))
    eps = eps[:1].detach().requires_grad_()
    out = kernel(x, weight, bias, None, eps)
    column = weight.view(1, 3, 1, 1)
    soft_sign = x / (x**2 + eps).sqrt() * column + bias.view(1, 3, 1, 1)
    torch.testing.assert_close(out, soft_sign)
    dx, deps = torch.autograd.grad(out.sum(), (x, eps))
    torch.testing.assert_close(
        dx, (column * eps / (x**2 + eps)**1.5).expand_as(x))
    torch.testing.assert_close(
        deps, (column * x * -0.5 / (x**2 + eps)**1.5).sum().view(1))


def test_empty_batch(kernel):
    x = torch.zeros(0, 3, 14, 14, requires_grad=True)
    params = [torch.ones(3, requires_grad=True) for _ in range(3)]
    out = kernel(x, *params)
    assert out.shape == x.shape
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad.eq(0).all() for p in params)


@pytest.mark.parametrize('shape', [
    (2, 3, 0, 5), (2, 3, 4, 0), (2, 3, 0), (2, 3, 2, 0, 2), (0, 3, 0, 0),
    (2, 0, 4, 4)])
@pytest.mark.parametrize('eps', [None, 1, 'C'])
def test_maps_of_nothing_teach_nothing(kernel, shape, eps):
    x = torch.zeros(shape, requires_grad=True)
    channels = shape[1]
    eps = torch.ones(channels if eps == 'C' else eps or 1)
    inputs = [x, *(torch.ones(channels) for _ in range(3)), eps]
    inputs = [value.requires_grad_() for value in inputs]
    out = kernel(*inputs)
    assert out.shape == shape
    for value, grad in zip(inputs, torch.autograd.grad(out.sum(), inputs),
                           strict=True):
        assert torch.equal(grad, torch.zeros_like(value))
    if kernel is frn:
        first = torch.autograd.grad(
            frn(*inputs).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(
            sum(g.sum() for g in first), inputs, allow_unused=True)
        assert all(g is None or g.eq(0).all() for g in second)


@pytest.mark.parametrize('spatial', [(6, 5), (3, 6, 5)])
def test_channels_last_is_kept(kernel, spatial):
    layout = (
        torch.channels_last
        if len(spatial) == 2 else torch.channels_last_3d)
    x, *params = tensors((2, 4, *spatial))
    y = x.detach().clone(memory_format=layout).requires_grad_()
    out = kernel(y, *params)
    assert out.is_contiguous(memory_format=layout)
    grad = torch.randn_like(out)
    dy, = torch.autograd.grad(out, y, grad)
    assert dy.is_contiguous(memory_format=layout)
    dx, = torch.autograd.grad(kernel(x, *params), x, grad)
    torch.testing.assert_close(dy, dx)


def test_strided_input_and_gradient(kernel):
    base, *params = tensors((2, 6, 8, 10))
    base = base.detach()
    x = base[:, :, ::2, 1::3].requires_grad_()
    params = [p.detach().requires_grad_() for p in params]
    grad = torch.randn(2, 6, 1, 1, dtype=F64).expand(x.shape)
    got = torch.autograd.grad(kernel(x, *params), [x, *params], grad)
    expected = paper(*arrays([x, *params]), grad.cpu().numpy())
    for a, b in zip(got, expected[1:], strict=True):
        np.testing.assert_allclose(a.cpu().numpy(), b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('dtype, mean', [
    (torch.float32, None), (torch.float64, torch.ones(8)),
    (torch.bfloat16, None), (torch.float16, torch.ones(8))])
def test_backward_keeps_the_input_and_one_number_per_row(kernel, dtype, mean):
    x = torch.randn(2, 8, 40, 40, dtype=dtype, requires_grad=True)
    params = [torch.ones(8, requires_grad=True) for _ in range(3)]
    mean = None if mean is None else mean.to(x.device)
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kernel(x, *params, mean=mean)
    if mean is not None:  # the caller's, which keeps it anyway
        kept.pop(mean.data_ptr(), None)
    assert sum(kept.values()) <= 1.02 * x.nbytes
    assert kept.pop(x.data_ptr()) == x.nbytes
    number = 8 if dtype is F64 else 4
    assert sum(kept.values()) == 2 * 8 * number + 3 * 8 * 4


def test_gradients_of_a_second_use_add_up(kernel):
    inputs = tensors((2, 3, 4, 4))
    once = torch.autograd.grad(kernel(*inputs).sum(), inputs)
    out = kernel(*inputs).sum() + 2 * kernel(*inputs).sum()
    for twice, one in zip(
            torch.autograd.grad(out, inputs), once, strict=True):
        torch.testing.assert_close(twice, 3 * one)


def test_only_what_is_asked_for_gets_a_gradient(kernel):
    x, weight, bias, tau, _ = tensors((2, 3, 4, 4))
    weight, tau = weight.detach(), tau.detach()
    kernel(x.detach(), weight, bias, tau).sum().backward()
    assert bias.grad is not None
    assert x.grad is None


def test_rows_do_not_see_each_other(kernel):
    """NaN in one channel of one image stays there."""
    x = torch.randn(3, 4, 5, 5)
    clean = kernel(x, torch.ones(4), torch.zeros(4), torch.zeros(4))
    x[1, 2] = torch.nan
    out = kernel(x, torch.ones(4), torch.zeros(4), torch.zeros(4))
    assert out[1, 2].isnan().all()
    out[1, 2] = clean[1, 2]
    assert torch.equal(out, clean)


@pytest.mark.parametrize('dtype, last', [
    (torch.float32, False), (torch.float32, True), (F64, False),
    (torch.bfloat16, True), (torch.float16, False)])
@pytest.mark.parametrize('where', ['x', 'weight', 'bias', 'tau', 'eps',
                                   'grad', 'x and tau'])
def test_nan_comes_out_where_the_formula_has_it(kernel, dtype, last, where):
    """Output and gradients; that of a NaN tau counts as not clipped."""
    names = ('x', 'weight', 'bias', 'tau', 'eps')
    inputs = dict(zip(names, tensors((2, 3, 7, 5)), strict=True))
    inputs['grad'] = torch.randn(2, 3, 7, 5, dtype=F64)
    for name in where.split(' and '):
        inputs[name].data.view(-1)[1 if name != 'x' else 40] = torch.nan
    grad = inputs.pop('grad').to(dtype)
    x, weight, bias, tau, eps = inputs.values()
    column = (1, 3, 1, 1)
    y = (weight.view(column) * x / (
        (x**2).mean((2, 3), keepdim=True) + eps.view(column)).sqrt()
        + bias.view(column)).detach()
    expected = torch.maximum(y, tau.detach().view(column))

    x = x.detach().to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    values = [v.detach().requires_grad_()
              for v in (x, weight, bias, tau, eps)]
    out = kernel(*values)
    assert torch.equal(out.isnan(), expected.isnan())
    got = torch.autograd.grad(out, values, grad)
    clipped = y < tau.view(column)
    dtau = torch.where(clipped, grad.to(F64), 0).sum((0, 2, 3))
    torch.testing.assert_close(
        got[3], dtau, rtol=.1, atol=.1, equal_nan=True)
    # A bias adds no more to the gradient of x than to x_hat.
    bad = (y - bias.view(column)).isnan() & (where != 'bias')
    rows = bad | grad.isnan() & ~clipped
    assert torch.equal(got[0].isnan().any(3).any(2), rows.any(3).any(2))


@pytest.mark.parametrize('dtype', [torch.uint8, torch.bool, torch.int64,
                                   torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize('choice', ['plain', 'native'])
def test_other_dtypes_are_refused(dtype, choice):
    x, other = torch.ones(2, 8, 3, 3), torch.ones(8).to(dtype)
    with use_kernel(choice):
        with pytest.raises(ValueError, match=f'input has dtype {dtype}, exp'):
            frn(x.to(dtype), torch.ones(8), torch.zeros(8))
        for name in ('weight', 'bias', 'tau', 'eps', 'mean', 'var'):
            given = dict(weight=torch.ones(8), bias=torch.ones(8))
            given[name] = other
            with pytest.raises(ValueError, match=f'FRN {name} has dtype'):
                frn(x, **given)


@pytest.mark.parametrize('name', ['weight', 'bias', 'tau', 'eps', 'mean',
                                  'var'])
@pytest.mark.parametrize('choice', ['plain', 'native'])
def test_a_parameter_on_another_device_is_refused(name, choice):
    """The kernel of a CPU would read memory that is not there."""
    given = dict(weight=torch.ones(8), bias=torch.ones(8))
    given[name] = torch.ones(8, device='meta')
    with use_kernel(choice), pytest.raises(
            ValueError, match=f'FRN {name} is on meta, but the input is on '):
        frn(torch.randn(2, 8, 3, 3), **given)


@pytest.mark.parametrize('shape', [(4, 8), (8, ), (1, 8, 2, 2, 2, 2)])
def test_other_ranks_are_refused(shape):
    with pytest.raises(ValueError, match='1 to 3 spatial dimensions') as e:
        frn(torch.randn(shape), torch.ones(8), torch.zeros(8))
    assert str(tuple(shape)) in str(e.value)


@pytest.mark.parametrize('name', ['weight', 'bias', 'tau', 'mean', 'var'])
def test_other_channels_are_refused(name):
    params = {key: torch.ones(8)
              for key in ('weight', 'bias', 'tau', 'mean', 'var')}
    params[name] = torch.ones(4)
    with pytest.raises(ValueError, match=f'{name} has shape .4,.*8 channels'):
        frn(torch.randn(2, 8, 3, 3), **params)


def test_other_eps_shapes_are_refused():
    with pytest.raises(ValueError, match='eps has shape'):
        frn(
            torch.randn(2, 8, 3, 3),
            torch.ones(8),
            torch.zeros(8),
            eps=torch.ones(4))


@settings(max_examples=25, deadline=None, **ONE_KERNEL)
@given(
    shape=st.lists(st.integers(1, 9), min_size=3, max_size=5),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_shape_equals_the_paper(kernel, shape, seed, scale, dtype):
    inputs = tensors(shape, dtype, seed, scale)
    out = kernel(*inputs)
    grad = torch.ones_like(out)
    got = [out] + list(torch.autograd.grad(out, inputs, grad))
    expected = paper(*arrays(inputs), grad.to(F64).cpu().numpy())
    tol = 1e-9 if dtype is F64 else 1e-4
    for a, b in zip(got, expected, strict=True):
        size = max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a.detach().cpu().numpy(), b, rtol=tol,
                                   atol=tol * size)


def test_the_definition_equals_the_paper_too():
    inputs = tensors((2, 3, 7, 5))
    out = frn_definition(*inputs)
    grad = torch.randn_like(out)
    got = [out] + list(torch.autograd.grad(out, inputs, grad))
    expected = paper(*arrays(inputs), grad.cpu().numpy())
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.detach().cpu().numpy(), b, rtol=1e-10,
                                   atol=1e-12)


def as_good_as_the_definition(kernel, inputs):
    """flash-attention's rule, against the definition in float64.

    At most twice the error that the definition makes in the same dtype, and
    a rounding for where that is 0 by luck. Over several gradients, since the
    error of a sum is a matter of luck, too.
    """

    def run(function, grad, dtype=None):
        copies = [
            v.detach().to(dtype or v.dtype).requires_grad_()
            if isinstance(v, torch.Tensor) else v for v in inputs
        ]
        leaves = [v for v in copies if isinstance(v, torch.Tensor)]
        out = function(*copies)
        return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    squares = None
    seeds = 5 if kernel is frn else 2  # Triton's interpreter is slow
    for seed in range(seeds):
        grad = torch.tensor(
            np.random.default_rng(100 + seed).normal(size=inputs[0].shape))
        grad = grad.to(inputs[0].dtype)
        exact = run(frn_definition, grad, F64)
        ours, theirs = run(kernel, grad), run(frn_definition, grad)
        assert [t.dtype for t in ours] == [t.dtype for t in theirs]
        new = torch.tensor([[
            (value.to(F64) - true).square().mean().item()
            for value, true in zip(values, exact, strict=True)
        ] for values in (ours, theirs)])
        squares = new if squares is None else squares + new
    error, allowed = (squares / seeds).sqrt()
    rounding = torch.tensor([
        torch.finfo(value.dtype).eps * true.square().mean().sqrt().item()
        for value, true in zip(ours, exact, strict=True)
    ])
    if kernel is not frn and inputs[0].dtype is torch.bfloat16:
        allowed *= 2  # Triton's interpreter rounds it towards 0
    assert (error <= 2 * allowed + rounding).all(), (error, allowed, rounding)


@pytest.mark.parametrize('shape, last, dtype', [
    (shape, bool((i + j) % 2) and len(shape) == 4, dtype)
    for i, shape in enumerate([(3, 5, 1, 1), (2, 5, 7, 7), (2, 3, 13, 21),
                               (2, 3, 123), (1, 2, 200, 180)])
    for j, dtype in enumerate([torch.float32, torch.bfloat16, torch.float16])])
def test_error_on_odd_sizes(kernel, shape, last, dtype):
    if kernel is not frn and shape[-1] > 123:
        pytest.skip('Triton on its interpreter: seconds, see test_cuda.py')
    x, *params = tensors(shape, torch.float32)
    x = x.detach().to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    as_good_as_the_definition(kernel, [x, *params])


@pytest.mark.parametrize('scale, with_tau', [
    (1e-30, True), (1e-5, False), (1e5, True), (1e17, False)])
def test_error_on_huge_and_tiny_values(kernel, scale, with_tau):
    x, weight, bias, tau, _ = tensors((2, 3, 13, 21), torch.float32,
                                      scale=scale)
    as_good_as_the_definition(
        kernel, [x, weight, bias, tau if with_tau else None, 1e-6])


def test_error_on_a_long_row(kernel):
    """The stem at 800 x 1344; a plain sum in float32 is far off by then."""
    if kernel is not frn:
        pytest.skip('Triton on its interpreter: minutes')
    inputs = tensors((1, 2, 400, 672), torch.float32)
    as_good_as_the_definition(kernel, inputs)


def test_zero_gamma(kernel):
    x, weight, bias, tau, eps = tensors((2, 3, 8, 9), torch.float32)
    weight = torch.zeros_like(weight)
    as_good_as_the_definition(kernel, [x, weight, bias, tau, eps])


@pytest.mark.parametrize('shape, last', [
    ((2, 3, 50, 50), False), ((3, 70, 7, 7), True)])
def test_two_runs_are_equal_bit_by_bit(kernel, shape, last):
    x, *params = tensors(shape, torch.float32)
    if last:
        x = x.detach().contiguous(
            memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn(shape)

    def run():
        out = kernel(x, *params)
        return [out, *torch.autograd.grad(out, [x, *params], grad)]

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)
