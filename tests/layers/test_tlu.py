import copy
import pickle

import pytest
import torch
from mmcv.cnn import ConvModule, build_activation_layer
from torch import nn

from frn_mmdet import TLU


@pytest.mark.parametrize('shape', [(2, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_is_the_papers_formula(shape):
    layer = TLU(3).double()
    nn.init.normal_(layer.tau)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    tau = layer.tau.view(1, 3, *[1] * (len(shape) - 2))
    expected = torch.relu(x - tau) + tau  # section 3: ReLU(y - tau) + tau
    torch.testing.assert_close(layer(x), expected)
    grad = torch.randn(shape, dtype=torch.float64)
    for a, b in zip(
            torch.autograd.grad(layer(x), (x, layer.tau), grad),
            torch.autograd.grad(expected, (x, layer.tau), grad),
            strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(layer, x)


def test_starts_as_relu():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(TLU(3)(x), x.relu())


def test_a_tie_goes_to_the_input():
    """In a zero-initialised residual block most of the sum is a tie."""
    layer = TLU(3)
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.eq(1).all()
    assert layer.tau.grad.eq(0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_keeps_half_types(dtype):
    layer = TLU(3)
    assert layer(torch.randn(2, 3, 4, 4, dtype=dtype)).dtype == dtype


def test_mmcv_builds_it_as_an_activation():
    assert build_activation_layer(dict(type='TLU', inplace=True)).tau.numel(
    ) == 1
    module = ConvModule(3, 8, 1, act_cfg=dict(type='TLU', num_features=8))
    assert module.activate.tau.shape == (8, )
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(module(x), module.conv(x).relu())


def test_shared_threshold_takes_any_channels():
    layer = TLU()
    nn.init.constant_(layer.tau, -.5)
    x = torch.randn(2, 7, 4, 4)
    assert torch.equal(layer(x), x.clamp(min=-.5))


def test_memory_format_copies_and_compile():
    layer = TLU(3)
    nn.init.normal_(layer.tau)
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    out = layer(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)),
                  torch.compile(layer, fullgraph=True, backend='aot_eager')):
        assert torch.equal(other(x), out)
    assert layer(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match='3 thresholds.*2, 4, 5, 5'):
        TLU(3)(torch.randn(2, 4, 5, 5))
    with pytest.raises(ValueError, match='thresholds'):
        TLU(3)(torch.randn(3))
