"""What the layers refuse to be built with, and what they take."""

import math

import numpy as np
import pytest
import torch
from mmcv.cnn import build_norm_layer
from torch import nn

from frn_mmdet import FRN, TLU
from frn_mmdet.errors import ConfigError
from frn_mmdet.layers import BRN, GFRN, LFRN, MapLayerNorm

NORMS = dict(FRN=FRN, GFRN=GFRN, LFRN=LFRN, LN=MapLayerNorm, BRN=BRN)


@pytest.mark.parametrize('name', NORMS)
@pytest.mark.parametrize('eps', [-1, -1e-9, None, '1e-4', math.nan, math.inf,
                                 True, [1e-4], 1j])
def test_an_eps_that_is_no_number_from_0_up(name, eps):
    with pytest.raises(ConfigError) as error:
        NORMS[name](32, eps=eps)
    assert str(error.value) == (
        f'{name} eps must be a finite number, 0 or more, got {eps!r}')


@pytest.mark.parametrize('name', [*NORMS, 'TLU'])
@pytest.mark.parametrize('channels', [0, -1, None, 32., '32', True, math.nan])
def test_channels_that_are_no_count(name, channels):
    with pytest.raises(ConfigError) as error:
        (NORMS | dict(TLU=TLU))[name](channels)
    assert str(error.value) == (f'{name} num_features must be a whole number,'
                                f' 1 or more, got {channels!r}')


@pytest.mark.parametrize('name', ['learnable_eps', 'tlu'])
@pytest.mark.parametrize('value', ['yes', 'no', 1, 0, None, [True]])
def test_flags_that_are_no_bool(name, value):
    with pytest.raises(ConfigError) as error:
        FRN(8, **{name: value})
    assert str(error.value) == (
        f'FRN {name} must be True or False, got {value!r}')


@pytest.mark.parametrize('value', [-.1, 1.1, math.nan, '1', True, [1],
                                   math.inf])
def test_a_share_that_is_no_number_from_0_to_1(value):
    with pytest.raises(ConfigError,
                       match='FRN share must be a number from 0 to 1, got'):
        FRN(8, share=value)


@pytest.mark.parametrize('groups, words', [
    (0, 'whole number, 1 or more, got 0'), (-2, 'whole number'),
    ('4', 'whole number'), (4., 'whole number'), (None, 'whole number'),
    (3, 'a divisor of num_features (32), such as 2, got 3'),
    (64, 'a divisor of num_features (32), such as 32, got 64')])
def test_groups_that_do_not_divide(groups, words):
    with pytest.raises(ConfigError) as error:
        GFRN(32, groups)
    assert str(error.value).startswith('GFRN num_groups must be ')
    assert words in str(error.value)


@pytest.mark.parametrize('name', ['momentum', 'r_max', 'd_max',
                                  'warmup_steps', 'r_steps', 'd_steps'])
@pytest.mark.parametrize('value', ['1', None, math.nan, math.inf, True])
def test_renorm_arguments_that_are_no_numbers(name, value):
    with pytest.raises(ConfigError, match=f'BRN {name} must be a .*number'):
        BRN(8, **{name: value})


def test_numbers_of_numpy_are_numbers():
    for norm in NORMS.values():
        layer = norm(np.int64(32), eps=np.float32(1e-3))
        assert layer(torch.randn(2, 32, 3, 3)).isfinite().all()
    assert TLU(np.int64(3)).tau.shape == (3, )
    assert FRN(8, eps=0, share=0).eps == 0


@pytest.mark.parametrize('name', ['FRN', 'GFRN', 'LFRN', 'BRN'])
def test_mmcv_says_the_same(name):
    with pytest.raises(ValueError, match=f"{name} eps must be .*'1e-4'"):
        build_norm_layer(dict(type=name, eps='1e-4'), 32)
    build_norm_layer(dict(type=name), 32)


@pytest.mark.parametrize('layer', [
    FRN(4, tlu=True), TLU(4), TLU(), GFRN(4, 2), LFRN(4), MapLayerNorm(4),
    BRN(4), BRN(4).eval()], ids=repr)
def test_what_every_layer_does_with_odd_maps(layer):
    """Nothing to learn of maps of nothing; no integers; NaN comes out."""
    for shape in ((2, 4, 0, 5), (0, 4, 3, 3), (2, 4, 0), (2, 4, 1, 0, 1)):
        before = {k: v.clone() for k, v in layer.named_buffers()}
        x = torch.zeros(shape, requires_grad=True)
        out = layer(x)
        assert out.shape == shape
        grads = torch.autograd.grad(out.sum(), [x, *layer.parameters()])
        assert all(g.eq(0).all() for g in grads)
        for name, value in layer.named_buffers():
            assert torch.equal(value, before[name])
    for dtype in (torch.uint8, torch.bool, torch.int64, torch.complex64):
        with pytest.raises(ValueError, match=f'input has dtype {dtype}'):
            layer(torch.ones(2, 4, 3, 3).to(dtype))
    if not layer.training or not isinstance(layer, BRN):
        x = torch.randn(2, 4, 3, 3)
        x[1, 2, 0, 0] = torch.nan
        assert layer(x)[1, 2, 0, 0].isnan()
        assert layer(x)[0].isfinite().all()


@pytest.mark.parametrize('build', [
    lambda: FRN(4, tlu=True, learnable_eps=True, share=.3), lambda: TLU(4),
    lambda: TLU(), lambda: GFRN(4, 2), lambda: LFRN(4),
    lambda: MapLayerNorm(4), lambda: BRN(4)])
def test_materialised_from_meta(build):
    with torch.device('meta'):
        layer = build()
    layer.to_empty(device='cpu')
    for value in [*layer.parameters(), *layer.buffers()]:
        nn.init.constant_(value, 7)  # or what was empty may happen to be 0
    layer.reset_parameters()
    for key, value in build().state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)


@pytest.mark.parametrize('name, args', [
    ('FRN', dict(learnable_eps=True, tlu=True, share=.1)), ('TLU', {}),
    ('BRN', {}), ('LN', {}), ('GFRN', dict(num_groups=4)), ('LFRN', {})])
@pytest.mark.parametrize('device, dtype', [
    ('meta', None), ('cpu', torch.float64), ('cpu', torch.float16),
    (torch.device('cpu'), torch.bfloat16)])
def test_device_and_dtype_are_those_of_torchs_layers(name, args, device,
                                                     dtype):
    kind = (NORMS | dict(TLU=TLU))[name]
    layer = kind(8, device=device, dtype=dtype, **args)
    state = layer.state_dict()
    like = kind(8, **args).to(dtype).state_dict()
    assert {key: value.dtype for key, value in state.items()} == {
        key: value.dtype for key, value in like.items()}
    assert {value.device.type for value in state.values()} == {
        torch.device(device).type}
    if device == 'meta':
        return
    torch.testing.assert_close(state, like)
    share = getattr(layer, 'share', None)
    x = torch.randn(2, 8, 5, 5).to(dtype)
    torch.testing.assert_close(
        layer.eval()(x), kind(8, **args).to(dtype).eval()(x))
    assert getattr(layer, 'share', None) == share  # eval() reads the buffer
    assert layer.train()(x).dtype is dtype
