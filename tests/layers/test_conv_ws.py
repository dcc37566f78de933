import copy
import io
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_conv_layer
from mmcv.cnn.bricks.conv_module import efficient_conv_bn_eval_forward
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from frn_mmdet import fold_ws
from frn_mmdet.layers import ConvWS
from frn_mmdet.ops.definition import standardize_definition
from frn_mmdet.ops.standardize import standardize

KINDS = [dict(kernel_size=3, padding=1, bias=False), dict(kernel_size=1),
         dict(kernel_size=3, groups=4, stride=2),
         dict(kernel_size=3, groups=8),
         dict(kernel_size=(1, 3), dilation=2),
         dict(kernel_size=3, padding=1, padding_mode='reflect')]


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_state_and_maps_are_mmcvs(kind):
    torch.manual_seed(0)
    plain, ours = nn.Conv2d(8, 16, **kind), ConvWS(8, 16, **kind)
    assert list(ours.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(plain.state_dict(), strict=True)
    theirs = plain
    if 'padding_mode' in kind:  # mmcv's has none
        w = plain.weight.flatten(1)
        w = (w - w.mean(1, True)) / (w.std(1, keepdim=True) + 1e-5)
        plain.weight = nn.Parameter(w.view_as(plain.weight))
    else:
        theirs = ConvWS2d(8, 16, **kind)
        theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 8, 9, 9)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x), theirs(x))


def test_it_is_built_by_name():
    conv = build_conv_layer(dict(type='frn_mmdet.ConvWS'), 4, 8, 3)
    assert type(conv) is ConvWS
    assert MODELS.get('ConvWS') is ConvWS2d
    module = ConvModule(4, 8, 3, conv_cfg=dict(type='frn_mmdet.ConvWS'))
    assert module(torch.randn(1, 4, 5, 5)).shape == (1, 8, 3, 3)


def test_a_filter_of_one_element_is_refused():
    with pytest.raises(ValueError, match='4 channels in 4 groups .* one elem'):
        ConvWS(4, 4, 1, groups=4)


def test_nothing_is_kept_between_calls():
    conv, x = ConvWS(4, 8, 3), torch.randn(1, 4, 7, 7)
    before = {key: copy.copy(value) for key, value in vars(conv).items()}
    size = len(pickle.dumps(conv))
    with torch.no_grad():
        conv(x)
    conv(x)
    assert vars(conv) == before
    assert vars(conv).keys() - vars(nn.Conv2d(4, 8, 3)).keys() == {'eps'}
    assert len(pickle.dumps(conv)) == size


# What people do to a convolution, with ours, with one that computes the same
# in its plainest words, and with mmcv's. Each gives the tensors to compare.

class Recomputed(nn.Conv2d):

    def forward(self, x):
        return self._conv_forward(
            x, standardize(self.weight, 1e-5), self.bias)


def maps(*sizes, **kwargs):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(2, 4, size, size, generator=generator).requires_grad_(
        **kwargs) for size in sizes]


def optimizer(cls, **kwargs):

    def run(conv):
        x, = maps(7)
        steps = cls(conv.parameters(), lr=.1, **kwargs)
        for i in range(4):
            for _ in range(1 + i % 2):  # accumulated
                y = conv(x)
                y.square().mean().backward()
                yield y
            with torch.no_grad():  # a look at the map, before and after
                yield conv(x)
                steps.step()
                yield conv(x)
            steps.zero_grad()
        yield from conv.parameters()

    return run


def ema(conv):
    """mmengine's hook: the averaged weights at each evaluation."""
    x, = maps(7)
    runner = SimpleNamespace(model=nn.Sequential(conv), iter=0)
    hook = EMAHook(momentum=.5)
    hook.before_run(runner)
    steps = torch.optim.SGD(conv.parameters(), lr=.5)
    for _ in range(3):
        conv.train()
        conv(x).square().mean().backward()
        steps.step()
        hook.after_train_iter(runner, 0)
        hook.before_val_epoch(runner)
        with torch.no_grad():
            yield conv.eval()(x)
            yield hook.ema_model.module(x)
        hook.after_val_epoch(runner)
        yield conv.train()(x)


def soft_teacher(conv):
    """mmdet's hook writes into .data; nobody calls eval()."""
    x, = maps(7)
    model = nn.ModuleDict(dict(student=conv, teacher=copy.deepcopy(conv)))
    model.teacher.requires_grad_(False)
    runner = SimpleNamespace(model=model, iter=0)
    hooks = pytest.importorskip('mmdet.engine.hooks')
    hook = hooks.MeanTeacherHook(momentum=.3)
    hook.before_train(runner)
    steps = torch.optim.SGD(conv.parameters(), lr=.5)
    for _ in range(3):
        with torch.no_grad():
            yield model.teacher(x)
        conv(x).square().mean().backward()
        steps.step()
        hook.after_train_iter(runner, 0)
        with torch.no_grad():
            yield model.teacher(x)


def data(conv):
    """Assigned twice, and written into, between calls without gradients."""
    x, = maps(7)
    with torch.no_grad():
        yield conv(x)
        for seed in (1, 2):
            torch.manual_seed(seed)
            conv.weight.data = torch.randn(8, 4, 3, 3)
            yield conv(x)
        conv.weight.data.normal_()
        yield conv(x)


def loaded(export):

    def run(conv):
        x, = maps(7, requires_grad=False)
        conv.eval()
        with torch.no_grad():
            yield conv(x)
            torch.manual_seed(3)
            conv.load_state_dict(nn.Conv2d(4, 8, 3).state_dict())
            yield export(conv, x)(x)
            yield conv(x)

    return run


def two_losses(conv):
    """Two calls, then a backward pass each: a GAN, a distillation."""
    for _ in range(3):
        for y in [conv(x) for x in maps(7, 9)]:
            y.square().mean().backward()
            yield conv.weight.grad.clone()


def checkpointed(reentrant):

    def run(conv):
        xs = maps(9, 7, 5)
        ys = [checkpoint(conv, x, use_reentrant=reentrant) for x in xs[:2]]
        ys.append(conv(xs[2]))
        sum(y.square().mean() for y in ys).backward()
        yield from ys
        yield from (p.grad for p in conv.parameters())
        yield from (x.grad for x in xs)

    return run


def autocast(conv):
    x, = maps(7)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = conv(x)
        y.square().mean().backward()
    yield y
    yield conv.weight.grad
    yield x.grad


def func(conv):
    """A gradient for each image, as torch.func computes it."""
    x, = maps(7, requires_grad=False)
    state = dict(conv.named_parameters())

    def loss(state, image):
        return torch.func.functional_call(
            conv, state, image[None]).square().mean()

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(state, x)
    yield from grads.values()


def pruned(conv):
    x, = maps(7)
    prune.l1_unstructured(conv, 'weight', .5)
    steps = torch.optim.SGD(conv.parameters(), lr=.5)
    for _ in range(2):
        y = conv(x)
        y.square().mean().backward()
        steps.step()
        with torch.no_grad():
            yield conv(x)
        prune.random_unstructured(conv, 'weight', 9)
        yield conv(x)
    yield conv.weight_orig.grad
    prune.remove(conv, 'weight')
    yield conv(x)


def pyramid(conv):
    """Five levels share it, in test mode between steps, too."""
    xs = maps(17, 13, 9, 7, 5)
    steps = torch.optim.SGD(conv.parameters(), lr=.5, momentum=.9)
    for _ in range(2):
        ys = [conv(x) for x in xs]
        sum(y.square().mean() for y in ys).backward()
        yield from ys
        yield conv.weight.grad.clone()
        steps.step()
        steps.zero_grad()
        with torch.no_grad():
            yield from [conv.eval()(x) for x in xs]
        conv.train()


def inference(conv):
    x, = maps(7)
    conv.requires_grad_(False)
    with torch.inference_mode():
        yield conv(x).clone()
    y = conv(x)
    y.square().mean().backward()
    yield x.grad


SITUATIONS = {
    'SGD': optimizer(torch.optim.SGD, momentum=.9),
    'SGD, fused': optimizer(torch.optim.SGD, fused=True),
    'AdamW': optimizer(torch.optim.AdamW),
    'AdamW, fused': optimizer(torch.optim.AdamW, fused=True),
    'EMA': ema,
    'SoftTeacher': soft_teacher,
    'data': data,
    'jit.trace': loaded(lambda conv, x: torch.jit.trace(conv, x)),
    'torch.export': loaded(
        lambda conv, x: torch.export.export(conv, (x, )).module()),
    'two losses': two_losses,
    're-entrant checkpoint': checkpointed(True),
    'checkpoint': checkpointed(False),
    'autocast': autocast,
    'torch.func': func,
    'pruning': pruned,
    'five levels': pyramid,
    'inference_mode': inference,
}


@pytest.mark.parametrize('name', SITUATIONS)
def test_it_is_what_recomputing_gives(name):
    """Bit for bit; and mmcv's, but for rounding."""
    torch.manual_seed(0)
    state = nn.Conv2d(4, 8, 3).state_dict()
    results = []
    for cls in (ConvWS, Recomputed, ConvWS2d):
        conv = cls(4, 8, 3)
        conv.load_state_dict(state)
        torch.manual_seed(7)
        results.append([
            t.detach().clone() for t in SITUATIONS[name](conv)])
    ours, recomputed, mmcvs = results
    assert len(ours) > 1
    size = 1e-2 if name == 'autocast' else 1e-4
    for a, b, c in zip(ours, recomputed, mmcvs, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=size, atol=size)


def test_copies_have_their_own_weight():
    conv = ConvWS(4, 8, 3).eval().requires_grad_(False)
    x = torch.randn(1, 4, 7, 7)
    want = conv(x)
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
def test_built_in_inference_mode_and_on_meta(mode):
    with torch.inference_mode():
        conv = ConvWS(4, 8, 3).train(mode)
        x = torch.randn(1, 4, 7, 7)
        first = conv(x)
        conv.weight += torch.randn_like(conv.weight)
        assert not torch.equal(conv(x), first)
    with torch.device('meta'):
        conv = ConvWS(4, 8, 3).train(mode)
        assert conv(torch.randn(1, 4, 7, 7)).shape == (1, 8, 5, 5)
    with FakeTensorMode():
        conv, x = ConvWS(4, 6, 3), torch.randn(6, 4, 3, 3, requires_grad=True)
        conv(x).sum().backward()
        assert x.grad.shape == x.shape
        assert conv.weight.grad.shape == conv.weight.shape


def test_folded_it_is_exported_as_a_plain_convolution():
    conv, x = ConvWS(4, 8, 3).eval(), torch.randn(1, 4, 7, 7)
    program = torch.export.export(fold_ws(conv), (x, ))
    assert [str(node.target) for node in program.graph.nodes
            if node.op == 'call_function'] == ['aten.conv2d.default']


def test_compiled():
    conv, x = ConvWS(4, 8, 3), torch.randn(1, 4, 7, 7)
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
        conv.weight.data.normal_()
        torch.testing.assert_close(compiled(x), conv(x))


def bytes_kept(function):
    """What a call has allocated and not given back, its result included."""
    with profile(activities=[ProfilerActivity.CPU],
                 profile_memory=True) as run:
        result = function()
    events = run.profiler.kineto_results.events()
    del result
    return sum(e.nbytes() for e in events if e.name() == '[memory]')


def test_a_call_keeps_one_weight_more_for_backward():
    plain, conv = nn.Conv2d(64, 64, 3), ConvWS(64, 64, 3)
    x, weight = torch.randn(2, 64, 5, 5), 4 * plain.weight.numel()
    kept = [bytes_kept(lambda c=c: c(x)) for c in (plain, conv)]
    assert kept[1] - kept[0] == weight
    with torch.no_grad():
        kept = [bytes_kept(lambda c=c: c(x)) for c in (plain, conv)]
    assert kept[1] == kept[0] > 0


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


def test_where_hooks_are_forbidden():
    conv, x = ConvWS(4, 6, 3), torch.randn(1, 4, 6, 6)
    with torch.autograd.graph.disable_saved_tensors_hooks('no'):
        conv(x).sum().backward()
    assert conv.weight.grad is not None


def test_a_norm_that_is_folded_as_it_runs_is_refused():
    """Standardization would undo its scale: mmcv's own in a ConvModule."""
    module = ConvModule(
        4, 8, 3, conv_cfg=dict(type='frn_mmdet.ConvWS'),
        norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True)
    x = torch.randn(2, 4, 7, 7)
    module(x)
    module.eval()
    want, conv, bn = module.bn(module.conv(x)), module.conv, module.bn
    with pytest.raises(RuntimeError, match='call frn_mmdet.fold_ws'):
        module(x)
    torch.testing.assert_close(
        efficient_conv_bn_eval_forward(bn, fold_ws(conv), x), want)
