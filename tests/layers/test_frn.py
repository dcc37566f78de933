import copy
import pickle

import pytest
import torch
from mmcv.cnn import ConvModule, build_norm_layer, is_norm
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.model.utils import convert_sync_batchnorm
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

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
