import math

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

GROUPS = (.2, .8)


def rates(steps, **scheduler):
    """The rates of two groups, step by step."""
    optimizer = torch.optim.SGD([
        dict(params=nn.Linear(1, 1).parameters(), lr=lr) for lr in GROUPS])
    scheduler = PARAM_SCHEDULERS.build(
        dict(scheduler, by_epoch=False),
        default_args=dict(optimizer=optimizer))
    found = []
    for _ in range(steps):
        found.append([g['lr'] for g in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def test_it_ends_at_the_optimizers_own_rate():
    """Each group's, after a start at 0; then it lets go."""
    found = rates(6, type='frn_mmdet.CosineWarmupLR', end=5)
    # (1 - cos(pi t / 4)) / 2
    expected = [0, .1464466, .5, .8535534, 1, 1]
    assert found == [pytest.approx([lr * part for lr in GROUPS])
                     for part in expected]


@pytest.mark.parametrize('warm_up', [.016, .1, .5])
def test_up_and_down_again_as_pytorchs_one_cycle(warm_up):
    steps = 500
    found = rates(steps, type='frn_mmdet.CosineLR', warm_up=warm_up,
                  end=steps)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters())
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1., total_steps=steps, pct_start=warm_up,
        div_factor=1e12, final_div_factor=1., cycle_momentum=False)
    for pair in found:
        rate, = cycle.get_last_lr()
        assert pair == pytest.approx([lr * rate for lr in GROUPS], abs=1e-9)
        optimizer.step()
        cycle.step()


def test_without_a_warm_up_it_starts_at_the_top():
    found = rates(5, type='frn_mmdet.CosineLR', warm_up=0., end=5)
    assert found == [pytest.approx([lr * part for lr in GROUPS])
                     for part in (
                         (1 + math.cos(math.pi * t / 4)) / 2
                         for t in range(5))]
