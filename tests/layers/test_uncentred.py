import copy
import pickle

import numpy as np
import pytest
import torch
from mmcv.cnn import build_norm_layer, is_norm
from torch import nn

from frn_mmdet import FRN
from frn_mmdet.layers import GFRN, LFRN

F64 = torch.float64


def formula(x, weight, bias, groups, eps=1e-6):
    """Image by image and group by group in NumPy."""
    out = np.empty_like(x)
    size = x.shape[1] // groups
    for n in range(x.shape[0]):
        for g in range(groups):
            part = slice(g * size, (g + 1) * size)
            nu2 = (x[n, part]**2).mean()
            out[n, part] = x[n, part] / np.sqrt(nu2 + eps)
    column = (-1, ) + (1, ) * (x.ndim - 2)
    return out * weight.reshape(column) + bias.reshape(column)


def build(layer, dtype=F64):
    layer = layer.to(dtype)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize('shape', [(2, 8, 7), (2, 8, 5, 6), (1, 8, 1, 1),
                                   (2, 8, 2, 3, 4)])
@pytest.mark.parametrize('layer, groups', [(GFRN(8, 4), 4), (GFRN(8, 1), 1),
                                           (LFRN(8), 1)])
def test_formula_and_gradients(layer, groups, shape):
    layer = build(layer)
    x = torch.randn(shape, dtype=F64, requires_grad=True)
    expected = formula(x.detach().numpy(),
                       layer.weight.detach().numpy(),
                       layer.bias.detach().numpy(), groups)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected)
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(
            layer, dict(weight=w, bias=b), x),
        (x, layer.weight, layer.bias))


def test_one_channel_a_group_is_frn():
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(GFRN(8, 8)(x), FRN(8)(x))


@pytest.mark.parametrize('name', ['GFRN', 'LFRN'])
def test_mmcv_knows_it(name):
    abbr, layer = build_norm_layer(dict(type=name), 32, postfix=1)
    assert abbr == f'{name.lower()}1'
    assert is_norm(layer)
    assert layer.eps == 1e-6
    assert build_norm_layer(dict(type=name, eps=1e-5), 32)[1].eps == 1e-5


@pytest.mark.parametrize('layer', [GFRN(8, 4), LFRN(8)])
def test_half_empty_layout_and_copies(layer):
    x = torch.full((2, 8, 4, 4), 300.).half()
    assert layer(x).dtype == torch.float16
    torch.testing.assert_close(layer(x), torch.ones_like(x))
    assert layer(x[:0]).shape == (0, 8, 4, 4)
    x = torch.randn(2, 8, 4, 4)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)),
                  torch.compile(layer, fullgraph=True, backend='aot_eager')):
        torch.testing.assert_close(other(x), layer(x))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match='GFRN of 8 channels.*2, 4, 3, 3'):
        GFRN(8, 4)(torch.randn(2, 4, 3, 3))
    with pytest.raises(ValueError, match='LFRN of 8 channels.*2, 8'):
        LFRN(8)(torch.randn(2, 8))


def test_exported_it_squares_by_a_product():
    program = torch.export.export(GFRN(8, 4), (torch.zeros(2, 8, 3, 5), ))
    names = [str(node.target) for node in program.graph.nodes]
    assert not any('pow' in name or 'square' in name for name in names)
    assert 'aten.mean.dim' in names
