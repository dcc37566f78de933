"""What a checkpoint says of itself, and whom that keeps from what."""

import copy
import io
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import (
    get_state_dict,
    load_state_dict,
    weights_to_cpu,
)
from torch import nn

from frn_mmdet import fold_ws
from frn_mmdet.errors import ConfigError
from frn_mmdet.switch.from_bn import convert_by_name, rename_norms
from frn_mmdet.switch.norms import parse_norm_cfg

GN = dict(type='GN', num_groups=4)


@pytest.fixture
def file(tmp_path):
    """file(state): a checkpoint of it, as mmengine writes one."""

    def _file(state):
        path = str(tmp_path / 'weights.pth')
        torch.save(dict(state_dict=weights_to_cpu(state)), path)
        return path

    return _file


def said(state, path=''):
    return state._metadata[path]['frn_mmdet']


def test_it_is_a_norm_cfg_for_each_part(small):
    state = small('RetinaNet', dict(
        type='FRN', parts=['backbone', 'neck'], from_bn=3)).state_dict()
    frn = dict(type='FRN', eps=1e-6, learnable_eps=False, tlu=True, ws=False,
               from_bn=3.)
    assert said(state) == dict(backbone=frn, neck=frn)
    assert said(state, 'backbone') == said(state)
    ws = small('RetinaNet', dict(type='GN', num_groups=np.int64(4),
                                 eps=np.float64(.1), ws=True, parts='neck'),
               {'backbone.norm_cfg.type': 'BN'})
    gn = dict(type='GN', num_groups=4, eps=.1, affine=True, tlu=False,
              ws=True, from_bn=None)
    for state in (ws.state_dict(), get_state_dict(ws)):
        neck = said(state)['neck']
        assert {key: neck[key] for key in gn} == gn
        assert said(state)['backbone'] == dict(ws=False)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    assert said(torch.load(buffer, weights_only=True)) == said(state)


OTHERS = [
    (GN, GN | dict(eps=1e-3), 'eps=1e-05'),
    ('FRN', dict(type='FRN', eps=1e-4), 'eps=1e-06'),
    (dict(type='BN', eps=1e-3), 'BN', 'eps=0.001'),
    ('LN', dict(type='LN', eps=1e-3), 'eps=1e-05'),
    (GN, dict(type='GN', num_groups=8), 'num_groups=4'),
    (dict(type='FRN', learnable_eps=True), 'FRN', 'learnable_eps=True'),
    (dict(type='IN', affine=False), 'IN', 'affine=False'),
]
EVERY_OTHER = pytest.mark.parametrize('saved, loaded, argument', OTHERS,
                                      ids=str)


def refused(argument, load, *args, **kwargs):
    with pytest.raises(ConfigError) as error:
        load(*args, **kwargs)
    assert (f'the backbone of the checkpoint was trained with {argument} '
            f'and the model has') in str(error.value)
    assert f'set model.norm_cfg.{argument}, or' in str(error.value)


@EVERY_OTHER
def test_other_arguments_are_another_norm(small, file, saved, loaded,
                                          argument):
    """Whichever way the weights go, whole or a part of them."""
    first, second = small('RetinaNet', saved), small('RetinaNet', loaded, {
        'bbox_head.stacked_convs': 1})
    before = copy.deepcopy(second.state_dict())
    average = ExponentialMovingAverage(first)
    wrapped = nn.DataParallel(first)
    for state in (first.state_dict(), average.module.state_dict(),
                  average.state_dict(), wrapped.state_dict(),
                  get_state_dict(wrapped)):
        refused(argument, load_checkpoint, second, file(state))
    for path in ('backbone', 'backbone.layer2', 'backbone.layer2.0'):
        state = first.get_submodule(path).state_dict()
        refused(argument, load_state_dict, second.get_submodule(path), state)
        refused(argument, second.get_submodule(path).load_state_dict, state)
        refused(argument, load_state_dict,
                nn.Sequential(OrderedDict(part=second.get_submodule(path))),
                nn.Sequential(OrderedDict(
                    part=first.get_submodule(path))).state_dict())
    assert all(torch.equal(value, before[key])
               for key, value in second.state_dict().items())
    load_state_dict(second, dict(first.state_dict()) if (
        'affine' not in argument and 'learnable' not in argument) else {})


@pytest.mark.parametrize('saved, loaded, argument, path, prefix', [
    (*OTHERS[1], 'backbone', 'backbone.'),
    (*OTHERS[4], 'backbone', 'backbone'),
    (*OTHERS[2], None, 'student.')], ids=str)
def test_a_prefix_loses_no_word(small, file, saved, loaded, argument, path,
                                prefix):
    """mmengine cuts the part's weights out of the file as a plain dict."""
    first = small('RetinaNet', saved)
    whole = first if path else nn.ModuleDict(dict(student=first))
    key = 'backbone.init_cfg' if path else 'init_cfg'
    init = {key: dict(type='Pretrained', prefix=prefix,
                      checkpoint=file(whole.state_dict()))}
    refused(argument, small('RetinaNet', loaded, init).init_weights)
    same = small('RetinaNet', saved, init, seed=1)
    same.init_weights()
    assert torch.equal(same.backbone.conv1.weight,
                       first.backbone.conv1.weight)


@pytest.mark.parametrize('saved, loaded', [
    ('BN', dict(type='BN', momentum=.01)), ('BN', 'SyncBN'),
    ('BRN', dict(type='BRN', r_max=2., d_max=1., momentum=.1)),
    ('FRN', dict(type='FRN', from_bn=3)),
    ('FRN', dict(type='FRN', from_bn=False)),
    ('FRN', dict(type='FRN', requires_grad=False)),
    (dict(type='FRN', tlu=False), 'FRN'),
    (dict(type='FRN', parts=['backbone']), 'FRN'),
], ids=str)
def test_what_may_differ(small, file, saved, loaded):
    first = small('RetinaNet', saved, {'neck.norm_cfg': None})
    load_checkpoint(small('RetinaNet', loaded).backbone,
                    file(first.backbone.state_dict()))


@pytest.mark.parametrize('saved, loaded, hint', [
    (GN, 'LN', ''), ('LN', GN, ''), (GN, 'FRN', ''), ('FRN', 'IN', ''),
    ('BN', dict(type='FRN', from_bn=False), 'or from_bn a number'),
    (dict(type='IN', track_running_stats=True), 'BN', ''),
    (dict(type='IN', track_running_stats=True), 'FRN', ''),
    ('BRN', 'BN', ''), ('BRN', 'FRN', '')], ids=str)
def test_a_norm_that_has_an_index_for_a_name(small, saved, loaded, hint):
    """``downsample.1``: another one's keys are the same."""
    first, second = (small('RetinaNet', norm).backbone.layer2[0].downsample
                     for norm in (saved, loaded))
    with pytest.raises(ConfigError) as error:
        load_state_dict(second, first.state_dict())
    for name in (saved, loaded):
        name = name if isinstance(name, str) else name['type']
        assert name in str(error.value)
    assert 'the backbone of the checkpoint has' in str(error.value)
    assert hint in str(error.value)


@pytest.mark.parametrize('norm', ['BRN', dict(type='FRN', from_bn=1e6)],
                         ids=str)
def test_a_bn_that_has_an_index_for_a_name(small, norm):
    """And an eps that no config of the new model knows."""
    first, second = (
        small('RetinaNet', value).backbone.layer2[0].downsample.eval()
        for value in (dict(type='BN', eps=.1), norm))
    bn = first[1]
    with torch.no_grad():
        for values in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
            values.uniform_(.2, 2)
    load_state_dict(second, first.state_dict())
    x = torch.randn(2, 8, 16, 16)
    torch.testing.assert_close(second.eval()(x), first(x), rtol=1e-3,
                               atol=1e-3)


def test_the_eps_of_a_bn_detector(small, file):
    first, second = (small('RetinaNet', value).eval() for value in (
        dict(type='BN', eps=.1, parts='backbone'),
        dict(type='FRN', from_bn=1e6)))
    with torch.no_grad():
        for module in first.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(.1, .3)
                module.running_mean.uniform_(-.1, .1)
    load_checkpoint(second, file(first.state_dict()))
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(second.eval().backbone(x), first.backbone(x),
                    strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('value', ['BN', 'FRN', GN, dict(GN, ws=True)],
                         ids=str)
def test_files_from_before(small, file, value):
    """They say of the weights and the groups, or nothing."""
    first = small('RetinaNet', value)
    state = first.state_dict()
    for old in (True, False):
        marks = {}
        if old:
            marks['frn_mmdet.ws'] = {part: mark['ws'] for part, mark
                                     in said(state).items()}
        if old and 'num_groups' in str(value):
            marks['frn_mmdet.num_groups'] = dict.fromkeys(said(state), 4)
        state._metadata = OrderedDict({'': {'version': 1} | marks})
        second = small('RetinaNet', value, seed=1)
        load_checkpoint(second, file(state), strict=True)
        assert all(torch.equal(second.state_dict()[key], value)
                   for key, value in state.items())
        if 'frn_mmdet.num_groups' in marks:
            refused('num_groups=4', load_checkpoint, small(
                'RetinaNet', dict(value, num_groups=8)), file(state))
        if 'ws' in value and old:
            with pytest.raises(ConfigError, match='standardization'):
                load_checkpoint(small('RetinaNet', GN), file(state))


def test_layers_that_only_one_has_are_nobodys_loss(small, file):
    first = small('RetinaNet', dict(GN, parts='head', ws=True))
    second = small('MaskRCNN', dict(type='FRN', parts='head'))
    load_checkpoint(second, file(first.state_dict()))
    assert torch.equal(second.backbone.conv1.weight,
                       first.backbone.conv1.weight)


def test_folded_weights_are_plain(small, file):
    model = small('RetinaNet', dict(GN, ws=True))
    folded = fold_ws(copy.deepcopy(model))
    path = file(folded.state_dict())
    plain = small('RetinaNet', GN, seed=1)
    load_checkpoint(plain, path, strict=True)
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(plain.backbone(x), model.backbone(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match='trained without weight'):
        load_checkpoint(model, path)


def test_relus_take_the_place_of_thresholds(small, file):
    """Those of weights that were loaded before, in an init_cfg, say."""
    first, second = (small('RetinaNet', value) for value in (
        dict(type='FRN', tlu=False), 'FRN'))
    deeper = small('RetinaNet', 'FRN', {'bbox_head.stacked_convs': 3})
    with torch.no_grad():
        for model in (second, deeper):
            for name, value in model.named_parameters():
                if name.endswith('tau'):
                    value.fill_(.5)
    load_checkpoint(second, file(first.state_dict()))
    load_checkpoint(deeper, file(first.state_dict()))
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(first._forward(x), second._forward(x), strict=True):
        for map_a, map_b in zip(a, b, strict=True):
            assert torch.equal(map_a, map_b)
    taus = {name: float(value.mean())
            for name, value in deeper.named_parameters()
            if name.endswith('tau')}
    assert {value for name, value in taus.items()
            if '_convs.2' in name} == {.5}  # a layer that first has not
    assert {value for name, value in taus.items()
            if '_convs.2' not in name} == {0.}


def test_what_a_tool_converts_says_no_more_that_it_is_bn(small, file):
    plan = parse_norm_cfg('FRN')
    state = small('MaskRCNN', 'BN').state_dict()
    before = copy.deepcopy(state._metadata)
    after = copy.copy(state)
    convert_by_name(after, plan, 1e-5, rename_norms(after, plan, False))
    assert state._metadata == before
    load_checkpoint(small('MaskRCNN', dict(type='FRN', from_bn=False)),
                    file(after))
