"""``torch.func`` and forward-mode AD, against the formula in float64."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    functionalize,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    vjp,
    vmap,
)

from frn_mmdet import FRN, TLU, use_kernel

F64 = torch.float64


@pytest.fixture(params=['plain', 'native'], autouse=True)
def kernel(request):
    """Each, as the choice outside of the transform."""
    with use_kernel(request.param):
        yield request.param


def frn_formula(p, x):
    """The docstring's equation; relu(y - tau) + tau, as the paper has it."""
    column = {k: v.view(1, -1, 1, 1) for k, v in p.items()}
    eps = 1e-6 + column['eps_l'].abs()
    y = column['weight'] * x / (
        (x**2).mean((2, 3), keepdim=True) + eps).sqrt() + column['bias']
    return torch.relu(y - column['tau']) + column['tau']


def tlu_formula(p, x):
    tau = p['tau'].view(1, -1, 1, 1)
    return torch.relu(x - tau) + tau


LAYERS = {
    'FRN': (lambda: FRN(3, tlu=True, learnable_eps=True), frn_formula),
    'TLU': (lambda: TLU(3), tlu_formula),
    'one threshold': (lambda: TLU(), tlu_formula),
}


@pytest.fixture(params=LAYERS)
def both(request):
    """(layer as a function of its parameters and x, formula, p, x)."""
    torch.manual_seed(0)
    build, formula = LAYERS[request.param]
    layer = build().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    p = {k: v.detach() for k, v in layer.named_parameters()}

    def ours(p, x):
        return functional_call(layer, p, (x, ))

    return ours, formula, p, torch.randn(2, 3, 3, 2, dtype=F64)


def total(f):
    return lambda p, x: f(p, x).pow(3).sum()


def ones(p):
    return {k: torch.ones_like(v) for k, v in p.items()}


def dual(f, p, x):
    with forward_ad.dual_level():
        y = f(p, forward_ad.make_dual(x, torch.ones_like(x)))
        return tuple(forward_ad.unpack_dual(y))


TRANSFORMS = {
    'grad': lambda f, p, x: grad(total(f), (0, 1))(p, x),
    'grad of grad': lambda f, p, x: grad(
        lambda x: grad(total(f), 1)(p, x).pow(2).sum())(x),
    'vmap': lambda f, p, x: vmap(lambda x: f(p, x[None])[0])(x),
    'vmap of another dimension': lambda f, p, x: vmap(
        lambda x: f(p, x[None])[0], in_dims=2)(x.movedim(0, 2)),
    'vmap(grad), per sample': lambda f, p, x: vmap(
        grad(total(f)), (None, 0))(p, x[:, None]),
    'an ensemble': lambda f, p, x: vmap(f, (0, None))(
        {k: torch.stack([v, 2 * v]) for k, v in p.items()}, x),
    'jvp': lambda f, p, x: jvp(f, (p, x), (ones(p), torch.ones_like(x))),
    'vjp': lambda f, p, x: vjp(f, p, x)[1](torch.ones_like(x)),
    'linearize': lambda f, p, x: linearize(
        lambda x: f(p, x), x)[1](torch.ones_like(x)),
    'jacrev': lambda f, p, x: jacrev(f, (0, 1))(p, x),
    'jacfwd': lambda f, p, x: jacfwd(f, (0, 1))(p, x),
    'hessian': lambda f, p, x: hessian(total(f), (0, 1))(p, x),
    'jacrev(jacrev)': lambda f, p, x: jacrev(jacrev(total(f), 1), 1)(p, x),
    'functionalize': lambda f, p, x: functionalize(f)(p, x),
    'forward_ad': dual,
    # their forward runs outside, and only the backward is batched
    'jacobian': lambda f, p, x: torch.autograd.functional.jacobian(
        lambda x: f(p, x), x, vectorize=True),
    'hessian of autograd': lambda f, p, x: torch.autograd.functional.hessian(
        lambda x: total(f)(p, x), x, vectorize=True),
}


@pytest.mark.filterwarnings('ignore:There is a performance drop')
@pytest.mark.parametrize('name', TRANSFORMS)
def test_is_that_of_the_formula(both, name):
    ours, formula, p, x = both
    torch.testing.assert_close(
        TRANSFORMS[name](ours, p, x), TRANSFORMS[name](formula, p, x))


def test_afterwards_the_kernel_runs(kernel):
    layer, x = FRN(3, tlu=True), torch.randn(2, 3, 4, 4)
    grad(lambda x: layer(x).sum())(x)
    dual(lambda _, x: layer(x), None, x)
    name = layer(x).grad_fn.name()
    assert ('PlainFRN' in name) is (kernel == 'plain')
    assert 'frn' in name.lower() or 'Autograd' in name


def test_per_sample_gradients_add_up_to_the_batch():
    layer, x = FRN(3, tlu=True, share=.3), torch.randn(4, 3, 5, 5)
    p = {k: v.detach() for k, v in layer.named_parameters()}

    def loss(p, x):
        return functional_call(layer, p, (x, )).square().sum()

    each = vmap(grad(loss), (None, 0))(p, x[:, None])
    loss(dict(layer.named_parameters()), x).backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)


def test_compiled():
    layer, x = FRN(3, tlu=True), torch.randn(2, 3, 4, 4)

    def f(x):
        return grad(lambda x: layer(x).square().sum())(x)

    compiled = torch.compile(f, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), f(x))
