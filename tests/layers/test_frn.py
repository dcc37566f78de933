import copy
import pickle

import pytest
import torch
from mmcv.cnn import ConvModule, build_norm_layer, is_norm
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.model.utils import convert_sync_batchnorm
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from frn_mmdet import FRN, frn


def test_arguments_and_initial_values():
    layer = FRN(8, tlu=True, learnable_eps=True)
    assert {n: tuple(p.shape) for n, p in layer.named_parameters()} == {
        'weight': (8, ),
        'bias': (8, ),
        'tau': (8, ),
        'eps_l': (1, ),
    }
    assert layer.weight.eq(1).all()
    assert layer.bias.eq(0).all()
    assert layer.tau.eq(0).all()
    assert layer.eps_l.item() == pytest.approx(1e-4)
    assert list(FRN(8).state_dict()) == ['weight', 'bias']


def test_learnable_eps_is_absolute():
    layer = FRN(3, learnable_eps=True)
    x = torch.randn(2, 3, 4, 4)
    for value in (0.3, -0.3):
        nn.init.constant_(layer.eps_l, value)
        expected = x / (x.square().mean((2, 3), keepdim=True) + 0.300001)**.5
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('cfg, eps', [
    (dict(type='FRN'), 1e-6),
    (dict(type='FRN', eps=1e-5), 1e-5),
    (dict(type='FRN', eps=1e-3), 1e-3),
    (dict(type='frn_mmdet.FRN'), 1e-6),
    (dict(type=FRN), 1e-6),
])
def test_mmcv_builds_it_with_the_papers_eps(cfg, eps):
    name, layer = build_norm_layer(cfg, 8, postfix=1)
    assert (name, type(layer), layer.eps) == ('frn1', FRN, eps)


def test_eps_of_a_subclass_and_of_a_direct_call():

    class Mine(FRN):

        def __init__(self, num_features, **kwargs):
            super().__init__(num_features, **kwargs)

    assert build_norm_layer(dict(type=Mine), 8)[1].eps == 1e-6
    assert build_norm_layer(dict(type=Mine, eps=1e-5), 8)[1].eps == 1e-5
    assert FRN(8, eps=1e-5).eps == 1e-5
    assert FRN(8).eps == 1e-6


def test_mmcv_and_mmengine_know_it_as_a_norm():
    assert is_norm(FRN(8))
    module = ConvModule(3, 8, 3, norm_cfg=dict(type='FRN'))
    nn.init.constant_(module.norm.weight, 7)
    module.init_weights()
    assert module.norm.weight.eq(1).all()
    assert module.conv.bias is None


def test_norm_decay_mult_takes_all_its_parameters():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), FRN(8, 1e-6, True, True))
    build = DefaultOptimWrapperConstructor(
        dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=1., weight_decay=.1)),
        dict(norm_decay_mult=0.))
    groups = build(model).optimizer.param_groups
    decay = {id(g['params'][0]): g['weight_decay'] for g in groups}
    assert [decay[id(p)] for p in model[1].parameters()] == [0.] * 4
    assert [decay[id(p)] for p in model[0].parameters()] == [.1] * 2


@pytest.mark.parametrize('training', [True, False])
def test_an_image_is_alone(training):
    """Whatever its batch mates are, and in training as in test."""
    layer = FRN(6, tlu=True, learnable_eps=True).train(training)
    x = torch.randn(4, 6, 9, 7)
    together = layer(x)
    for i in range(4):
        assert torch.equal(layer(x[i:i + 1])[0], together[i])
    x[1:] *= 1e4
    assert torch.equal(layer.train(not training)(x)[0], together[0])


def test_folding_and_conversion_leave_it_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), FRN(8, tlu=True))
    nn.init.constant_(model[1].tau, 0.2)
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    for change in (fuse_conv_bn, convert_sync_batchnorm,
                   nn.SyncBatchNorm.convert_sync_batchnorm):
        changed = change(copy.deepcopy(model).eval())
        assert type(changed[1]) is FRN
        assert torch.equal(changed(x), expected)


def test_training_equals_test():
    layer = FRN(3, tlu=True)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer.train()(x), layer.eval()(x))


def test_frozen_layer_freezes_its_threshold():
    _, layer = build_norm_layer(dict(type='FRN', requires_grad=False), 8)
    layer.add_tlu()
    assert not layer.tau.requires_grad


def test_copies_and_state_dicts():
    layer = FRN(3, tlu=True, learnable_eps=True)
    for p in layer.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 3, 4, 4)
    expected = layer(x)
    fresh = FRN(3, tlu=True, learnable_eps=True)
    fresh.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)),
                  fresh):
        assert torch.equal(other(x), expected)


def test_materialised_from_meta():
    with torch.device('meta'):
        layer = FRN(3, tlu=True, learnable_eps=True)
    layer.to_empty(device='cpu').reset_parameters()
    state = FRN(3, tlu=True, learnable_eps=True).state_dict()
    for key, value in layer.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize('dtype',
                         [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_of_the_module(dtype):
    layer = FRN(3, tlu=True, learnable_eps=True).to(dtype)
    x = torch.randn(2, 3, 5, 5, dtype=dtype, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert {out.dtype, x.grad.dtype, layer.tau.grad.dtype} == {dtype}


def test_autocast_keeps_the_dtype_of_the_convolution():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), FRN(8, tlu=True))
    x = torch.randn(2, 3, 9, 9)
    with torch.autocast('cpu', torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model(x), rtol=.05, atol=.05)
    out.sum().backward()
    assert model[1].weight.grad.dtype == torch.float32


@pytest.mark.parametrize('learnable_eps', [True, False])
@pytest.mark.parametrize('tlu', [True, False])
def test_compiles_as_one_graph(tlu, learnable_eps):
    layer = FRN(3, tlu=tlu, learnable_eps=learnable_eps)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    grads = []
    for function in (layer, compiled):
        x = torch.linspace(-1, 1, 2 * 3 * 25).view(2, 3, 5, 5)
        x.requires_grad_()
        layer.zero_grad()
        out = function(x)
        out.square().sum().backward()
        grads.append([out, x.grad] + [p.grad for p in layer.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_repr_and_errors():
    assert repr(FRN(8)) == 'FRN(8, eps=1e-06)'
    assert repr(FRN(8, learnable_eps=True, tlu=True)) == (
        'FRN(8, eps=1e-06, learnable_eps=True, tlu=True)')
    with pytest.raises(ValueError, match='8 channels'):
        FRN(4)(torch.randn(2, 8, 3, 3))
    with pytest.raises(ValueError, match='spatial'):
        FRN(8)(torch.randn(2, 8))


def test_layer_is_the_function():
    layer = FRN(3, eps=.1, tlu=True)
    for p in layer.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 3, 4, 4)
    expected = frn(x, layer.weight, layer.bias, layer.tau, .1)
    assert torch.equal(layer(x), expected)


def batch_norm(channels, seed=0):
    """A BN in test mode, of random statistics and parameters."""
    generator = torch.Generator().manual_seed(seed)
    bn = nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        for value in (bn.weight, bn.bias, bn.running_mean):
            value.normal_(generator=generator)
        bn.running_var.uniform_(.2, 3, generator=generator)
    return bn


def from_batch_norm(bn, share, **kwargs):
    """An FRN that starts from it, filled by hand."""
    layer = FRN(bn.num_features, share=share, **kwargs)
    with torch.no_grad():
        layer.weight.copy_(bn.weight)
        layer.bias.copy_(bn.bias)
        layer.ref_mean.copy_(bn.running_mean)
        layer.ref_var.copy_(bn.running_var + bn.eps)
    return layer


def reference_formula(x, layer, a):
    """BN's own, with an eps of a: in float64, a share of 1 / (1 + a)."""
    def column(value):
        return value.detach().double().view(1, -1, 1, 1)

    x_ref = (x.double() - column(layer.ref_mean)) / column(layer.ref_var)**.5
    nu2 = (x_ref**2).mean((2, 3), keepdim=True)
    y = column(layer.weight) * (1 + a)**.5 * x_ref / (
        nu2 + a + layer.eps)**.5 + column(layer.bias)
    if layer.tau is not None:
        y = torch.maximum(y, column(layer.tau))
    return y


@pytest.mark.parametrize('a', [0., .5, 10., 1e4])
@pytest.mark.parametrize('tlu', [True, False])
def test_reference_statistics_are_the_equation(a, tlu):
    layer = from_batch_norm(batch_norm(5), 1 / (1 + a), tlu=tlu)
    x = torch.randn(3, 5, 9, 7) * 2 + 1
    torch.testing.assert_close(
        layer(x).double(), reference_formula(x, layer, a), rtol=1e-5,
        atol=1e-5)


@pytest.mark.parametrize('share, error', [(0., 1e-5), (1e-6, 1e-4),
                                          (1e-3, 1e-1)])
def test_a_small_share_is_a_frozen_batch_norm(share, error):
    """Also in how weight and bias learn."""
    bn = batch_norm(6)
    layer = from_batch_norm(bn, share)
    x = torch.randn(2, 6, 12, 12) * 2
    grad = torch.randn_like(x)
    runs = []
    for norm in (bn, layer):
        own = x.clone().requires_grad_()
        out = norm(own)
        out.backward(grad)
        runs.append((out, own.grad, norm.weight.grad, norm.bias.grad))
    for a, b in zip(*runs, strict=True):
        assert ((a - b).norm() / a.norm()).item() < error


def test_a_share_of_1_is_frn_of_the_standardized_map():
    bn = batch_norm(4)
    layer = from_batch_norm(bn, 1., learnable_eps=True, tlu=True)
    x = torch.randn(2, 4, 6, 6)
    standard = (x - bn.running_mean.view(1, -1, 1, 1)) / (
        bn.running_var + bn.eps).view(1, -1, 1, 1)**.5
    expected = frn(standard, layer.weight, layer.bias, layer.tau,
                   1e-6 + layer.eps_l.abs())
    torch.testing.assert_close(layer(x), expected)


def test_gradients_with_reference_statistics():
    layer = from_batch_norm(batch_norm(3), .3, learnable_eps=True,
                            tlu=True).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(
            layer, dict(zip(names, parameters, strict=True)), x)

    inputs = (x, *(p.detach().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize('share', [1., .1, 0.])
def test_dead_channels_are_finite(share):
    """A channel that was 0 everywhere has variance 0, and so has x here."""
    bn = batch_norm(2)
    bn.running_mean.zero_()
    bn.running_var.zero_()
    layer = from_batch_norm(bn, share, tlu=True)
    x = torch.zeros(2, 2, 5, 5, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_without_reference_statistics_there_is_no_trace_of_them():
    assert list(FRN(8, tlu=True).state_dict()) == ['weight', 'bias', 'tau']
    assert list(FRN(8).buffers()) == []
    assert list(FRN(8, share=1).state_dict()) == [
        'weight', 'bias', 'ref_mean', 'ref_var', 'ref_share']


def test_a_state_dict_says_itself_whether_it_has_them():
    plain, x = FRN(3, tlu=True), torch.randn(2, 3, 4, 4)
    nn.init.normal_(plain.weight)
    started = from_batch_norm(batch_norm(3), .3, tlu=True)
    for source, other in ((started, FRN(3, tlu=True)),
                          (started, FRN(3, tlu=True, share=.02)),
                          (plain, FRN(3, tlu=True, share=.02))):
        other.load_state_dict(source.state_dict())
        assert torch.equal(other(x), source(x))
        again = FRN(3, tlu=True)
        again.load_state_dict(other.state_dict())
        assert torch.equal(again(x), source(x))


def test_buffers_stay_where_they_were():
    """mmengine's EMA pairs the buffers of two models by their order."""
    layer = FRN(3, share=.02)
    layer.load_state_dict(FRN(3).state_dict())
    assert [name for name, _ in layer.named_buffers()] == [
        'ref_mean', 'ref_var', 'ref_share']


@pytest.mark.parametrize('change', [
    copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)),
    torch.compile])
def test_copies_keep_the_reference(change):
    layer = from_batch_norm(batch_norm(3), .1, tlu=True)
    x = torch.randn(2, 3, 4, 4)
    other = change(layer) if change is not torch.compile else torch.compile(
        layer, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(other(x), layer(x))


def test_an_average_of_weights_is_read_before_it_is_used():
    """mmengine's EMA copies a model, and later writes into its buffers."""
    layer = FRN(3, share=.1)
    average = copy.deepcopy(layer)
    layer.load_state_dict(from_batch_norm(batch_norm(3), 0.).state_dict())
    for own, other in zip(average.state_dict().values(),
                          layer.state_dict().values(), strict=True):
        own.data.copy_(other)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(average.eval()(x), layer(x))


def test_without_values_there_is_nothing_to_read():
    with FakeTensorMode():
        assert FRN(3, share=.1).eval().share == pytest.approx(.1)
    with torch.device('meta'):
        assert FRN(3, share=.1).eval().share == pytest.approx(.1)


def test_reference_materialised_from_meta():
    with torch.device('meta'):
        layer = FRN(3, share=.1)
    layer.to_empty(device='cpu').reset_parameters()
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(x), FRN(3, share=.1)(x))


@pytest.mark.parametrize('share', [0., .1])
def test_exported_with_reference(share):
    layer = from_batch_norm(batch_norm(3), share, tlu=True).eval()
    x = torch.randn(2, 3, 8, 8)
    program = torch.export.export(layer, (x, ))
    torch.testing.assert_close(program.module()(x), layer(x))
    assert 'frn_mmdet' not in str(program.graph)


def test_reference_in_mmcv_and_in_print():
    _, layer = build_norm_layer(dict(type='FRN', share=.1), 8)
    assert repr(layer) == 'FRN(8, eps=1e-06, share=0.1)'
    assert 'share=0)' in repr(FRN(8, share=0))


@pytest.mark.parametrize('share, a', [
    (1 / 11, 10.), (1., 0.), (0., float('inf')),
    (0., float('nan')),  # an average over infinities
])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_a_state_dict_of_old_has_ref_eps(share, a, dtype):
    layer = from_batch_norm(batch_norm(3), share, tlu=True)
    state = layer.state_dict()
    del state['ref_share']
    state['ref_eps'] = torch.tensor(a, dtype=dtype)
    x = torch.randn(2, 3, 4, 4)
    for other in (FRN(3, tlu=True), FRN(3, tlu=True, share=.5)):
        other.load_state_dict(state)  # strictly: nothing is left over
        assert other.share == pytest.approx(share, rel=1e-3)
        torch.testing.assert_close(other(x), layer(x), rtol=1e-3, atol=1e-4)
    assert 'ref_eps' in state  # it is the caller's
