import dataclasses

import numpy as np
import pytest
from mmcv.cnn import build_norm_layer

from frn_mmdet.errors import ConfigError
from frn_mmdet.switch.norms import (
    NORMS,
    NormPlan,
    parse_norm_cfg,
    read_norm,
)


@pytest.mark.parametrize('name', NORMS)
def test_a_string_is_enough(name):
    """mmcv builds the layer that the table says, for a map of 32 channels."""
    plan = parse_norm_cfg(name)
    _, layer = build_norm_layer(plan.norm_cfg, 32)
    assert type(layer) is NORMS[name].layer
    assert layer.weight.shape == (32, )
    assert plan.parts == ('backbone', 'neck', 'head')


@pytest.mark.parametrize('name', NORMS)
def test_tlu_follows_the_uncentred_norms_by_default(name):
    assert parse_norm_cfg(name).tlu is name.endswith('FRN')
    assert parse_norm_cfg(dict(type=name, tlu=True)).tlu
    assert not parse_norm_cfg(dict(type=name, tlu=False)).tlu


def test_a_dict_sets_the_layers_arguments():
    plan = parse_norm_cfg(dict(type='GN', num_groups=8, eps=.1))
    assert plan.norm_cfg == dict(type='frn_mmdet.GN', num_groups=8, eps=.1)
    plan = parse_norm_cfg(dict(type='FRN', eps=np.float32(.5)))
    assert plan.norm_cfg['eps'] == .5
    # PyTorch's frozen statistics, and its cumulative average.
    assert parse_norm_cfg(dict(type='BN', momentum=0)).norm_cfg == dict(
        type='BN', momentum=0)
    assert parse_norm_cfg(dict(type='BN', momentum=None)).norm_cfg == dict(
        type='BN', momentum=None)
    plan = parse_norm_cfg(
        dict(type='FRN', learnable_eps=True, requires_grad=False))
    assert plan.norm_cfg == dict(
        type='FRN', learnable_eps=True, requires_grad=False)


def test_from_bn():
    assert parse_norm_cfg(dict(type='FRN', from_bn=0)).converts
    assert parse_norm_cfg('BRN').converts
    for name in ('FRN', 'GN', 'LN', 'IN', 'GFRN', 'LFRN'):
        plan = parse_norm_cfg(name)
        assert plan.converts
        assert plan.share == pytest.approx(1 / 11)
        assert not parse_norm_cfg(dict(type=name, ws=True)).converts
    for name in ('BN', 'SyncBN'):
        assert not parse_norm_cfg(name).converts
    for name in NORMS:
        plan = parse_norm_cfg(dict(type=name, from_bn=False))
        assert plan.scratch
        assert not plan.converts


@pytest.mark.parametrize('value', [
    dict(type='GN', affine=False), dict(type='GN', bias=False),
    dict(type='IN', affine=False), dict(type='IN', track_running_stats=True)])
def test_a_norm_without_a_place_for_what_bn_learnt(value):
    plan = parse_norm_cfg(value)
    assert not plan.converts
    assert plan.from_bn is None
    name, (key, setting) = value['type'], list(value.items())[1]
    with pytest.raises(ConfigError) as error:
        parse_norm_cfg(value | dict(from_bn=10))
    assert f'from_bn: with {key}={setting} it takes no 10' in str(error.value)
    assert parse_norm_cfg(dict(type=name)).converts


def test_a_stray_argument_is_told_every_key():
    """Of the plan as well, whatever it has."""
    with pytest.raises(ConfigError, match="takes no 'areas'") as error:
        parse_norm_cfg(dict(type='FRN', areas=True))
    for field in dataclasses.fields(NormPlan):
        if field.name not in ('name', 'norm_cfg'):
            assert f', {field.name}' in str(error.value)


def test_parts():
    assert parse_norm_cfg(dict(type='GN', parts='neck')).parts == ('neck', )
    both = parse_norm_cfg(dict(type='GN', parts=['neck', 'head'])).parts
    assert both == ('neck', 'head')


@pytest.mark.parametrize('text, words', [
    ('FRN:type=BN', ['FRN:type=BN', "'type'", 'twice']),
    ('FRN:eps=1e-4:eps=1e-5', ["'eps'", 'twice']),
    ('FRN+TLU:tlu=false', ["'tlu'", 'twice']),
    ('FRN:eps', ["'eps'", 'GN:num_groups=8']),
    ('FRN+XLU', ["'XLU'", 'TLU, ReLU']),
])
def test_a_word_that_is_no_norm(text, words):
    with pytest.raises(ConfigError) as error:
        read_norm(text)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize('value, words', [
    ('XN', ["'XN'", 'FRN, BN, SyncBN, GN, LN, IN, BRN, GFRN, LFRN']),
    (dict(type='XN'), ["'XN'", 'FRN']),
    (dict(num_groups=8), ['None', 'FRN']),
    (8, ['name of a norm', '8']),
    (dict(type='FRN', num_groups=32), ['FRN', "'num_groups'", 'eps']),
    (dict(type='BN', num_groups=32), ['BN', "'num_groups'", 'momentum']),
    (dict(type='GN', num_channels=8), ['GN', "'num_channels'"]),
    (dict(type='FRN', tlu='yes'), ['tlu', "'yes'", 'True or False']),
    (dict(type='FRN', parts='roi'), ['parts', "'roi'", 'neck']),
    (dict(type='FRN', parts=[]), ['parts', 'neck']),
    (dict(type='FRN', parts=3), ['parts', '3', 'neck']),
    (dict(type='BRN', r_maximum=2), ['BRN', "'r_maximum'", 'r_max']),
    (dict(type='FRN', from_bn=-1), ['from_bn', '-1', 'from 0 up']),
    (dict(type='FRN', from_bn=True), ['from_bn', 'True', 'from 0 up']),
    (dict(type='FRN', from_bn='10'), ['from_bn', "'10'"]),
    (dict(type='FRN', from_bn=float('inf')), ['from_bn', 'inf']),
    (dict(type='GN', from_bn=-1), ['from_bn', '-1', 'from 0 up']),
    (dict(type='SyncBN', from_bn=10), ['from_bn', 'SyncBN', '10', 'for FRN']),
    (dict(type='BRN', from_bn=10), [
        'from_bn', 'BRN', '10', 'for FRN, GN, LN, IN, GFRN, LFRN']),
    (dict(type='BN', from_bn=True), ['from_bn', 'BN', 'True', 'for FRN']),
    (dict(type='FRN', share=.1), ["'share'", 'from_bn']),
    (dict(type='GN', num_groups=0), ['num_groups', '0']),
    (dict(type='GN', num_groups='8'), ['num_groups', "'8'"]),
    (dict(type='GN', num_groups=True), ['num_groups', 'True']),
    (dict(type='GN', num_groups=8.), ['num_groups', '8.0', 'whole']),
    (dict(type='FRN', eps='1e-4'), ['eps', "'1e-4'", 'from 0 up']),
    (dict(type='FRN', eps=None), ['eps', 'None', 'a number']),
    (dict(type='BN', eps=-1), ['eps', '-1']),
    (dict(type='LN', eps=float('nan')), ['eps', 'nan']),
    (dict(type='IN', eps=float('inf')), ['eps', 'inf', 'from 0 up']),
    (dict(type='FRN', learnable_eps='yes'), ['learnable_eps', "'yes'"]),
    (dict(type='FRN', learnable_eps=1), ['learnable_eps', 'True or False']),
    (dict(type='BN', momentum=2), ['momentum', '2', 'from 0 to 1']),
    (dict(type='FRN', eps=10**400), ['eps', 'a number']),
    (dict(type='FRN', eps=1e200), ['eps', '1e+200']),
    (dict(type='BRN', momentum=None), ['momentum', 'None']),
    (dict(type='BRN', r_max='3'), ['r_max', "'3'", 'a number']),
    (dict(type='BRN', r_steps=1e4), ['r_steps', '10000.0', 'whole']),
    (dict(type='IN', affine='no'), ['affine', "'no'"]),
    (dict(type='BN', requires_grad=0), ['requires_grad', '0']),
    (dict(type='FRN', parts=[['neck']]), ['parts', "[['neck']]"]),
    (dict(type=['FRN']), ["['FRN']", 'choose one of']),
])
def test_a_wrong_value_is_refused_by_name(value, words):
    with pytest.raises(ConfigError) as error:
        parse_norm_cfg(value)
    text = str(error.value)
    assert text.startswith('model.norm_cfg')
    assert '\n' not in text
    for word in words:
        assert word in text
