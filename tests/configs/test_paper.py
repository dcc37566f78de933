"""The schedule and the optimizer of the paper's cells, as mmengine runs."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from torch import nn

ROOT = Path(__file__).parents[2] / 'configs'
PAPER = sorted((ROOT / 'paper').glob('*.py'))


def lr_at(cfg, *steps):
    """The LR that the config's scheduler gives at some steps."""
    optimizer = torch.optim.SGD(
        nn.Linear(1, 1).parameters(), cfg.optim_wrapper.optimizer.lr)
    scheduler_cfg, = cfg.param_scheduler
    scheduler = PARAM_SCHEDULERS.build(
        dict(scheduler_cfg, end=cfg.train_cfg.max_iters),  # as the runner
        default_args=dict(optimizer=optimizer))
    values = []
    for step in steps:
        scheduler.last_step = step - 1
        scheduler.step()
        values.append(optimizer.param_groups[0]['lr'])
    return values


@pytest.mark.parametrize('path', PAPER, ids=lambda p: p.stem)
def test_the_cell_is_what_its_name_says(path):
    """Section 4.2: batch, steps, and a base LR of 0.05 x batch / 64."""
    cfg = Config.fromfile(path)
    images, steps = re.search(r'_8xb(\d)-(\d+)k_', path.stem).groups()
    assert cfg.train_dataloader.batch_size == int(images)
    assert cfg.train_cfg.max_iters == 1000 * int(steps)
    share = 5 if 'finetune' in path.stem else 1
    assert 8 * int(images) * 1000 * int(steps) * share == 8_000_000
    assert cfg.optim_wrapper.optimizer.lr == .05
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=64)


@pytest.mark.parametrize('path', PAPER, ids=lambda p: p.stem)
def test_cosine_warm_up_and_decay(path):
    cfg = Config.fromfile(path)
    last = cfg.train_cfg.max_iters - 1
    top = cfg.optim_wrapper.optimizer.lr
    peak = round(.016 * cfg.train_cfg.max_iters) - 1
    middle = (peak + last) // 2
    start, rising, highest, half, end = lr_at(cfg, 0, peak // 2, peak, middle,
                                              last)
    assert start == pytest.approx(0, abs=1e-8)
    assert rising == pytest.approx(
        top * (1 - math.cos(math.pi * (peak // 2) / peak)) / 2, rel=1e-3)
    assert highest == pytest.approx(top)
    assert half == pytest.approx(top / 2, rel=1e-3)
    assert end == pytest.approx(0, abs=1e-8)


def test_decay_is_on_convolution_weights_alone():
    init_default_scope('mmdet')
    path = ROOT / 'paper/retinanet_r101_fpn_frn_8xb2-500k_coco.py'
    cfg = Config.fromfile(path)
    cfg.model.backbone.depth = 50  # less to build; the rules are the same
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decays = {
        id(p): group['weight_decay']
        for group in optimizer.param_groups for p in group['params']
    }
    convs = {
        id(m.weight)
        for m in model.modules() if isinstance(m, nn.Conv2d)
    }
    assert len(decays) == len(list(model.parameters()))
    for key, decay in decays.items():
        assert decay == (4e-4 if key in convs else 0)
    assert optimizer.defaults['momentum'] == .9


@pytest.mark.parametrize('folder', ['frn', 'paper', 'mask_rcnn'])
def test_metafile_lists_every_config_and_claims_nothing(folder):
    meta = yaml.safe_load((ROOT / folder / 'metafile.yml').read_text())
    listed = [ROOT.parent / model['Config'] for model in meta['Models']]
    assert sorted(listed) == sorted((ROOT / folder).glob('*.py'))
    name = meta['Collections'][0]['Name']
    for model in meta['Models']:
        assert model['Name'] == Path(model['Config']).stem
        assert model['In Collection'] == name
        assert 'Results' not in model
    readme = meta['Collections'][0]['README']
    text = (ROOT.parent / readme).read_text()
    for model in meta['Models']:
        assert Path(model['Config']).name in text
