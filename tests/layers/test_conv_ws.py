import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_conv_layer
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from frn_mmdet.layers import ConvWS
from frn_mmdet.ops.definition import standardize_definition

KINDS = [dict(kernel_size=3, padding=1, bias=False), dict(kernel_size=1),
         dict(kernel_size=3, groups=4, stride=2),
         dict(kernel_size=3, groups=8),
         dict(kernel_size=(1, 3), dilation=2)]


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_state_and_maps_are_mmcvs(kind):
    torch.manual_seed(0)
    theirs, ours = ConvWS2d(8, 16, **kind), ConvWS(8, 16, **kind)
    plain = nn.Conv2d(8, 16, **kind)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    plain.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(2, 8, 9, 9)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x), theirs(x))


def test_it_is_built_by_name():
    init_default_scope('mmdet')
    conv = build_conv_layer(dict(type='frn_mmdet.ConvWS'), 4, 8, 3)
    assert type(conv) is ConvWS
    assert MODELS.get('ConvWS') is ConvWS2d
    module = ConvModule(4, 8, 3, conv_cfg=dict(type='frn_mmdet.ConvWS'))
    assert module(torch.randn(1, 4, 5, 5)).shape == (1, 8, 3, 3)


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_from_plain_and_back(kind):
    """With the same parameters, hooks and mode; folded it is the same."""
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 16, **kind).eval()
    seen = []
    plain.register_forward_hook(lambda *args: seen.append(1))
    ws = ConvWS.like(plain)
    assert ws.weight is plain.weight
    x = torch.randn(2, 8, 9, 9)
    want = ws(x)
    folded = ws.folded()
    assert type(folded) is nn.Conv2d
    assert repr(folded) == repr(plain)
    torch.testing.assert_close(folded(x), want)
    assert len(seen) == 2
    assert ws.weight is plain.weight


def changes():
    """What changes a weight, each in its way."""

    def step(conv):
        conv.weight.grad = torch.ones_like(conv.weight) * conv.weight.detach()
        conv.weight.grad[:, 0] = 3
        torch.optim.SGD([conv.weight], lr=.5).step()

    def load(conv):
        torch.manual_seed(1)
        conv.load_state_dict(ConvWS(4, 8, 3).state_dict())

    def assign(conv):
        torch.manual_seed(1)
        conv.load_state_dict(ConvWS(4, 8, 3).state_dict(), assign=True)

    def replace(conv):
        conv.weight = nn.Parameter(torch.randn(8, 4, 3, 3))

    def replace_data(conv):
        conv.weight.data = torch.randn(8, 4, 3, 3)

    def swap(conv):  # mmengine's EMAHook, before and after an evaluation
        conv.weight.data.copy_(torch.randn(8, 4, 3, 3))
        conv.eval()

    def init(conv):
        nn.init.normal_(conv.weight)

    def half(conv):
        conv.bfloat16()

    def double(conv):
        conv.double()

    def in_training(conv):
        conv.train()
        conv.weight.data.normal_()
        conv.eval()

    return [step, load, assign, replace, replace_data, swap, init, half,
            double, in_training]


@pytest.mark.parametrize('change', changes(), ids=lambda f: f.__name__)
def test_a_change_is_not_missed(change):
    torch.manual_seed(0)
    conv = ConvWS(4, 8, 3).eval()
    x = torch.randn(1, 4, 7, 7)
    with torch.no_grad():
        before = conv(x)
        assert conv.standardized() is conv.standardized()
    change(conv)
    x = x.to(conv.weight.dtype)
    with torch.no_grad():
        after = conv(x)
        want = nn.functional.conv2d(
            x, ConvWS.like(conv).train().standardized(), conv.bias)
        assert torch.equal(after, want)
        assert not torch.equal(after.float(), before)


def test_test_mode_learns_where_it_is_asked_to():
    """norm_eval and fine-tuning in test mode."""
    conv = ConvWS(4, 8, 3).eval()
    with torch.no_grad():
        conv(torch.randn(1, 4, 7, 7))
    conv(torch.randn(1, 4, 7, 7)).sum().backward()
    assert conv.weight.grad.abs().sum() > 0
    conv.requires_grad_(False)
    assert conv.standardized() is conv.standardized()


def test_copies_have_their_own():
    conv = ConvWS(4, 8, 3).eval().requires_grad_(False)
    x = torch.randn(1, 4, 7, 7)
    want = conv(x)
    size = len(pickle.dumps(ConvWS(4, 8, 3)))
    assert len(pickle.dumps(conv)) < size + 200
    file = io.BytesIO()
    torch.save(conv, file)
    file.seek(0)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)),
                  torch.load(file, weights_only=False)):
        assert torch.equal(other(x), want)
        other.weight += torch.randn_like(other.weight)
        assert not torch.equal(other(x), want)
    assert torch.equal(conv(x), want)


@pytest.mark.parametrize('mode', [True, False])
def test_inference_mode_and_meta(mode):
    with torch.inference_mode():
        conv = ConvWS(4, 8, 3).train(mode)
        x = torch.randn(1, 4, 7, 7)
        first = conv(x)
        conv.weight += torch.randn_like(conv.weight)
        assert not torch.equal(conv(x), first)
    with torch.device('meta'):
        conv = ConvWS(4, 8, 3).train(mode)
        assert conv(torch.randn(1, 4, 7, 7)).shape == (1, 8, 5, 5)


def test_a_filter_of_one_element_is_refused():
    with pytest.raises(ValueError, match='4 channels in 4 groups .* one elem'):
        ConvWS(4, 4, 1, groups=4)
    with pytest.raises(ValueError, match='one element'):
        ConvWS.like(nn.Conv2d(1, 8, 1))


def operators(program):
    return {str(node.target) for node in program.graph.nodes
            if node.op == 'call_function'}


def test_what_is_exported_is_a_plain_convolution():
    conv = ConvWS(4, 8, 3).eval()
    x = torch.randn(1, 4, 7, 7)
    with torch.no_grad():
        want = conv(x)
        program = torch.export.export(conv, (x, ))
        assert operators(program) == {'aten.conv2d.default'}
        assert torch.equal(program.module()(x), want)
        traced = torch.jit.trace(conv, x)
        assert [n.kind() for n in traced.inlined_graph.nodes()
                if n.kind() not in ('prim::Constant', 'prim::ListConstruct',
                                    'prim::GetAttr')] == ['aten::_convolution']
    folded = torch.export.export(conv.folded(), (x, ))
    assert operators(folded) == {'aten.conv2d.default'}


def test_compiled():
    conv = ConvWS(4, 8, 3)
    x = torch.randn(1, 4, 7, 7)
    compiled = torch.compile(conv, backend='aot_eager', fullgraph=True)
    want = conv(x)
    want.sum().backward()
    grad, conv.weight.grad = conv.weight.grad, None
    got = compiled(x)
    got.sum().backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(conv.weight.grad, grad)
    conv.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), want)


def gradient(conv, xs, run=lambda conv, x: conv(x)):
    conv.weight.grad = None
    sum(run(conv, x).square().sum() for x in xs).backward()
    return conv.weight.grad


def test_levels_that_share_it_standardize_once():
    """And learn the same as if each did."""
    conv = ConvWS(4, 8, 3).double()
    xs = [torch.randn(1, 4, size, size).double() for size in (9, 7, 5)]
    want = gradient(conv, xs, lambda conv, x: nn.functional.conv2d(
        x, ConvWS.like(conv).standardized(), conv.bias))
    for x in xs:
        assert conv(x).grad_fn is not None
        assert conv.standardized() is conv.standardized()
    for _ in range(2):  # accumulated steps: the weight stays, its graph goes
        torch.testing.assert_close(gradient(conv, xs), want)


@pytest.mark.parametrize('reentrant', [True, False])
def test_under_activation_checkpointing(reentrant):
    conv = ConvWS(4, 8, 3).double()
    xs = [torch.randn(1, 4, size, size, dtype=torch.float64,
                      requires_grad=True) for size in (9, 7, 5)]
    want = gradient(conv, xs)
    got = gradient(conv, xs, lambda conv, x: checkpoint(
        conv, x, use_reentrant=reentrant))
    torch.testing.assert_close(got, want)
    mixed = gradient(conv, xs, lambda conv, x: conv(x) if x is xs[1] else (
        checkpoint(conv, x, use_reentrant=reentrant)))
    torch.testing.assert_close(mixed, want)


def test_an_optimizer_that_writes_into_data():
    """PyTorch does not count that; the backward pass before it is enough."""
    conv, x = ConvWS(4, 8, 3), torch.randn(1, 4, 7, 7)
    for _ in range(2):
        before = conv(x)
        before.square().sum().backward()
        conv.weight.data.sub_(conv.weight.grad)
        want = nn.functional.conv2d(
            x, ConvWS.like(conv).standardized(), conv.bias)
        assert torch.equal(conv(x), want)
        assert not torch.equal(want, before)


def test_with_and_without_gradients_in_turn():
    conv, x = ConvWS(4, 8, 3), torch.randn(1, 4, 7, 7)
    with torch.no_grad():
        conv(x)
    conv(x).sum().backward()
    assert conv.weight.grad is not None
    with torch.no_grad():
        assert not conv(x).requires_grad


def bytes_kept(function):
    """What a call has allocated and not given back, its result included."""
    with profile(activities=[ProfilerActivity.CPU],
                 profile_memory=True) as run:
        result = function()
    events = run.profiler.kineto_results.events()
    del result
    return sum(e.nbytes() for e in events if e.name() == '[memory]')


def test_a_step_keeps_what_a_plain_one_keeps():
    """But where levels share a layer: there its standardized weight, once."""
    plain = nn.Conv2d(64, 64, 3)
    x, weight = torch.randn(2, 64, 5, 5), 4 * plain.weight.numel()
    conv = ConvWS.like(plain)
    conv(x).sum().backward()  # the first step builds what stays
    kept = [bytes_kept(lambda c=c: c(x)) for c in (plain, conv)]
    assert kept[1] == kept[0] > 0
    shared = ConvWS.like(plain)
    for _ in range(2):
        (shared(x) + shared(x)).sum().backward()
    kept = [bytes_kept(lambda c=c: (c(x), c(x), c(x)))
            for c in (plain, shared)]
    assert kept[1] - kept[0] == weight


@pytest.mark.parametrize('calls', [1, 3])
def test_steps_are_those_of_mmcvs(calls):
    """Its weight is standardized at each call, and kept for backward."""
    torch.manual_seed(0)
    conv = ConvWS(8, 6, 3, groups=2).double()
    stock = ConvWS2d(8, 6, 3, groups=2).double()
    stock.load_state_dict(conv.state_dict())
    models = [conv, stock]
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in models]
    for step in range(4):
        x = torch.randn(calls, 2, 8, 7, 7).double()
        for model, optimizer in zip(models, optimizers, strict=True):
            for _ in range(1 + step % 2):  # accumulated
                sum(model(x[i]).pow(2).mean()
                    for i in range(calls)).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, value in stock.state_dict().items():
        torch.testing.assert_close(conv.state_dict()[name], value)


def test_a_graph_may_be_gone_through_twice_and_differentiated():
    torch.manual_seed(0)
    conv, x = ConvWS(4, 6, 3).double(), torch.randn(1, 4, 6, 6).double()
    y = conv(x).pow(3).sum()
    first, = torch.autograd.grad(y, conv.weight, create_graph=True)
    again, = torch.autograd.grad(y, conv.weight, retain_graph=True)
    assert torch.equal(first, again)
    second, = torch.autograd.grad(first.pow(2).sum(), conv.weight)

    def by_definition(weight):
        y = F.conv2d(x, standardize_definition(weight, conv.eps), conv.bias)
        grad, = torch.autograd.grad(y.pow(3).sum(), weight, create_graph=True)
        return torch.autograd.grad(grad.pow(2).sum(), weight)[0]

    torch.testing.assert_close(second, by_definition(conv.weight))


@pytest.mark.parametrize('what', ['weight', 'input'])
@pytest.mark.parametrize('cls', [nn.Conv2d, ConvWS])
def test_what_changes_before_backward_is_an_error(cls, what):
    """As of a plain convolution, by PyTorch itself."""
    conv = cls(4, 6, 3)
    x = torch.randn(1, 4, 6, 6, requires_grad=True).abs()
    y = conv(x).sum()
    with torch.no_grad():
        (x if what == 'input' else conv.weight).mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        y.backward()


class Dropout(nn.Module):
    """Gives another weight each time."""

    calls = 0

    def forward(self, weight):
        self.calls += 1
        return F.dropout(weight, 0.3)


def test_a_parametrized_weight_is_that_of_forward():
    conv = ConvWS(4, 6, 3, bias=False).double()
    dropout = Dropout()
    nn.utils.parametrize.register_parametrization(conv, 'weight', dropout)
    dropout.calls = 0
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64, requires_grad=True)
    y = conv(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert dropout.calls == 1
    # A convolution is linear in its input.
    torch.testing.assert_close((y * grad).sum(), (x * x.grad).sum())


def test_tensors_without_an_address():
    with FakeTensorMode():
        conv, x = ConvWS(4, 6, 3), torch.randn(6, 4, 3, 3, requires_grad=True)
        conv(x).sum().backward()
        assert x.grad.shape == x.shape
        assert conv.weight.grad.shape == conv.weight.shape


def test_a_step_that_was_given_up_costs_no_memory_later():
    """It looks as if two levels shared the layer."""
    plain = nn.Conv2d(64, 64, 3)
    conv, x = ConvWS.like(plain), torch.randn(2, 64, 5, 5)
    conv(x)  # an error in the loss, say
    with torch.no_grad():
        conv(x)
    for _ in range(2):
        conv(x).sum().backward()
    kept = [bytes_kept(lambda c=c: c(x)) for c in (plain, conv)]
    assert kept[1] == kept[0]


def test_where_hooks_are_forbidden():
    conv, x = ConvWS(4, 6, 3), torch.randn(1, 4, 6, 6)
    with torch.autograd.graph.disable_saved_tensors_hooks('no'):
        conv(x).sum().backward()
    assert conv.weight.grad is not None
