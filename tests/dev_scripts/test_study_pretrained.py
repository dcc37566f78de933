"""What the study's script does beside calling the other tools."""

import argparse
from pathlib import Path

import pytest
import study_pretrained as study
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import HOOKS, init_default_scope

import frn_mmdet

pytestmark = pytest.mark.slow  # of a script for developers
ROOT = Path(__file__).parents[2]


def test_torchvisions_names_become_mmdets(tmp_path):
    """By order, value for value; GN's file has gamma and beta alone."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    expected = MODELS.build(dict(type='MobileNetV2')).state_dict()
    for value in expected.values():
        if value.is_floating_point():
            value.normal_()
    weights = {f'features.{i}': v for i, v in enumerate(expected.values())}
    weights['classifier.1.weight'] = torch.zeros(1000, 1280)
    torch.save(weights, tmp_path / 'mobilenet_v2_imagenet.pth')
    out = study.prepare(argparse.Namespace(
        data=tmp_path, out=tmp_path / 'out', only=['kangaroo']))
    state = torch.load(out / study.WEIGHTS)
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)
    affine = torch.load(out / study.AFFINE)
    assert {key.rpartition('.')[2] for key in affine} == {'weight', 'bias'}
    assert torch.equal(affine['conv1.gn.bias'], expected['conv1.bn.bias'])


def test_seed_0_chooses_the_rate():
    rows = [
        dict(norm='FRN', batch='2', lr=lr, seed=seed, AP=ap)
        for lr, seed, ap in (('0.1', '0', '0.3'), ('0.2', '0', '0.4'),
                             ('0.2', '1', '0.2'), ('0.2', '2', ''))
    ] + [dict(norm='FRN', batch='1', lr='0.1', seed='0', AP='0.9')]
    assert study.score(rows, 'FRN', '2') == ('30.0 ± 14.1', '0.2')
    assert study.score(rows, 'BN', '2') == ('-', '-')


def test_the_steps_of_norms(tmp_path, monkeypatch):
    """The config has the hook, which scales what a step changes."""
    monkeypatch.syspath_prepend(ROOT / '.dev_scripts')
    row = next(row for row in study.STARTS['choices']
               if row.steps == 'alike=True')
    cfg = Config.fromfile(study.with_steps(
        study.config_of('kangaroo'), row, tmp_path))
    hook = HOOKS.build(cfg.custom_hooks[0])
    norm = frn_mmdet.FRN(2, share=.1)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1., -3.]))
    runner = argparse.Namespace(model=norm)
    hook.before_train(runner)
    hook.before_train_iter(runner)
    with torch.no_grad():
        norm.weight += 1
        norm.bias -= 1
    hook.after_train_iter(runner)
    torch.testing.assert_close(norm.weight.tolist(), [1.5, -1.5])
    torch.testing.assert_close(norm.bias.tolist(), [-.5, -1.5])


def test_rows_of_a_folder_differ_in_their_norm_alone():
    for rows in study.STARTS.values():
        cells = [(row.folder, row.norm) for row in rows]
        assert len(set(cells)) == len(cells)
        assert len({row.title for row in rows}) == len(rows)
