import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn


def test_it_ends_at_the_optimizers_own_rate():
    """Each group's, after a start at 0; then it lets go."""
    groups = [dict(params=nn.Linear(1, 1).parameters(), lr=lr)
              for lr in (.2, .8)]
    optimizer = torch.optim.SGD(groups)
    scheduler = PARAM_SCHEDULERS.build(
        dict(type='frn_mmdet.CosineWarmupLR', end=5, by_epoch=False),
        default_args=dict(optimizer=optimizer))
    found = []
    for _ in range(6):
        found.append([g['lr'] for g in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    # (1 - cos(pi t / 4)) / 2
    expected = [0, .1464466, .5, .8535534, 1, 1]
    assert found == [pytest.approx([.2 * part, .8 * part])
                     for part in expected]
