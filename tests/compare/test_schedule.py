"""A schedule over images seen is the same at any batch size."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from torch import nn

from frn_mmdet.compare.schedule import (
    count_in_steps,
    peak_lr,
    scale_steps,
    set_peak_lr,
)

ROOT = Path(__file__).parents[2] / 'configs'
STOCK = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
PAPER = ROOT / 'paper/retinanet_r101_fpn_frn_8xb2-500k_coco.py'


def config(name):
    """A config of mmdet's, or of ours."""
    return get_config(name) if '::' in str(name) else Config.fromfile(name)


def curve(cfg, epoch, steps):
    """The learning rate at each step, by mmengine's own schedulers."""
    init_default_scope('mmdet')
    optimizer = torch.optim.SGD(
        nn.Linear(1, 1).parameters(), cfg.optim_wrapper.optimizer.lr)
    schedulers = []
    for one in copy.deepcopy(cfg.param_scheduler):
        one.setdefault('by_epoch', True)
        if not one['by_epoch'] and 'max_iters' in cfg.train_cfg:
            one.setdefault('end', cfg.train_cfg.max_iters)  # as the runner
        if one.get('convert_to_iter_based'):
            one['epoch_length'] = epoch
        schedulers.append(PARAM_SCHEDULERS.build(
            one, default_args=dict(optimizer=optimizer)))
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]['lr'])
        for scheduler in schedulers:
            if not scheduler.by_epoch or (step + 1) % epoch == 0:
                scheduler.step()
    return rates


def short_stock():
    """mmdet's 1x: warm-up in steps, then MultiStepLR in epochs."""
    cfg = get_config(STOCK)
    warm_up, multi_step = cfg.param_scheduler
    assert not warm_up.by_epoch and multi_step.by_epoch
    warm_up.end = 40
    return cfg


def short_paper():
    """OneCycleLR in steps, whose peak is its own key."""
    cfg = Config.fromfile(PAPER)
    cfg.train_cfg.max_iters = 4800
    cfg.param_scheduler = [dict(
        type='OneCycleLR', eta_max=.0125, total_steps=4800, pct_start=.016,
        anneal_strategy='cos', div_factor=1e8, final_div_factor=1.,
        by_epoch=False)]
    cfg.optim_wrapper.optimizer.lr = .0125
    return cfg


def paper():
    """The paper's own, which reads its steps and its peak elsewhere."""
    cfg = Config.fromfile(PAPER)
    cfg.train_cfg.max_iters = 4800
    return cfg


def scratch():
    """Warm-up and cosine in epochs, converted to steps."""
    cfg = Config.fromfile(ROOT / 'small_batch/retinanet_r18_fpn_shapes.py')
    assert all(s.convert_to_iter_based for s in cfg.param_scheduler)
    return cfg


@pytest.mark.parametrize('make, epochs', [
    (short_stock, 12), (short_paper, 120), (paper, 120), (scratch, 5)])
@pytest.mark.parametrize('times', [4, 8])
def test_smaller_batches_see_the_same_curve(make, epochs, times):
    """At 1/times of the batch, and of the learning rate."""
    large = make()
    small = copy.deepcopy(large)
    set_peak_lr(small, peak_lr(large) / times)
    scale_steps(small, times)
    epoch = 40
    before = curve(large, epoch, epoch * epochs)
    after = curve(small, epoch * times, epoch * epochs * times)
    assert max(before) == pytest.approx(peak_lr(large), rel=1e-3)
    # A step of the large batch is `times` of the small one: their first.
    first = [rate * times for rate in after[::times]]
    assert first == pytest.approx(before, abs=.03 * max(before))
    # And the means agree: the same learning over the same images.
    assert sum(after) / len(after) * times == pytest.approx(
        sum(before) / len(before), rel=.01)


@pytest.mark.parametrize('make, epochs', [(short_stock, 12), (scratch, 5)])
def test_epochs_counted_in_steps_are_the_same(make, epochs):
    cfg = make()
    before = curve(cfg, 40, 40 * epochs)
    hook = dict(cfg.default_hooks.checkpoint)
    count_in_steps(cfg, 40)
    assert curve(cfg, 10**9, 40 * epochs) == pytest.approx(before)
    assert cfg.train_cfg.type == 'IterBasedTrainLoop'
    assert cfg.train_cfg.max_iters == 40 * epochs
    assert cfg.default_hooks.checkpoint.interval == 40 * hook['interval']
    assert not cfg.default_hooks.checkpoint.by_epoch
    assert not cfg.log_processor.by_epoch


def test_what_is_counted_in_steps_and_what_in_epochs():
    cfg = Config.fromfile(PAPER)
    iters = cfg.train_cfg.max_iters
    cfg.train_cfg.dynamic_intervals = [(iters - 100, 50)]
    cfg.model.norm_cfg = dict(type='BRN', warmup_steps=10, r_max=3.)
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=1000)
    val = cfg.train_cfg.val_interval
    scale_steps(cfg, .5)
    assert cfg.train_cfg.max_iters == iters / 2
    assert cfg.train_cfg.val_interval == val / 2
    assert cfg.train_cfg.dynamic_intervals == [(iters / 2 - 50, 25)]
    assert cfg.default_hooks.checkpoint.interval == 500
    assert cfg.model.norm_cfg == dict(type='BRN', warmup_steps=5, r_max=3.)
    epochs = get_config(STOCK)
    scale_steps(epochs, 8)
    assert epochs.train_cfg.max_epochs == 12
    assert epochs.default_hooks.checkpoint.interval == 1
    assert epochs.param_scheduler[0].end == 4000
    assert epochs.param_scheduler[1].milestones == [8, 11]
