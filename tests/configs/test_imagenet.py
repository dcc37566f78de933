"""The paper's ImageNet schedule, as mmengine runs it; no mmpretrain here."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

ROOT = Path(__file__).parents[2] / 'configs'
IMAGENET = sorted((ROOT / 'imagenet').glob('*_in1k.py'))


def lrs(cfg, epoch, lr):
    """The LR of every step, an epoch being ``epoch`` steps."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr)
    schedulers = [
        PARAM_SCHEDULERS.build(
            each, default_args=dict(optimizer=optimizer, epoch_length=epoch))
        for each in cfg.param_scheduler]
    values = []
    for _ in range(cfg.train_cfg.max_epochs * epoch):
        values.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return values


@pytest.mark.parametrize('path', IMAGENET, ids=lambda p: p.stem)
@pytest.mark.parametrize('per_gpu', [32, 2])
def test_cosine_warm_up_and_decay(path, per_gpu):
    cfg = Config.fromfile(path)
    cfg.merge_from_dict({'train_dataloader.batch_size': per_gpu})
    # Fewer images than ImageNet's: the curve is over the images seen.
    batch = 8 * cfg.train_dataloader.batch_size
    epoch = 5120 // batch
    scale = cfg.auto_scale_lr
    assert scale.enable
    top = cfg.optim_wrapper.optimizer.lr * batch / scale.base_batch_size
    assert top == pytest.approx(.1 * batch / 256)
    values = lrs(cfg, epoch, top)
    peak = 5 * epoch
    assert values[0] == 0
    assert values[peak // 2] == pytest.approx(top / 2, rel=.03)
    quarter = (1 - math.cos(math.pi / 4)) / 2
    assert values[peak // 4] == pytest.approx(top * quarter, rel=.03)
    assert max(values) == pytest.approx(values[peak]) == pytest.approx(top)
    middle = (peak + len(values)) // 2
    assert values[middle] == pytest.approx(top / 2, rel=.01)
    assert values[-1] == pytest.approx(0, abs=top * 1e-4)


def test_norm_and_images_are_the_command_lines():
    for path in IMAGENET:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict({'model.norm_cfg': 'GN'})
        assert cfg.model.norm_cfg == 'GN'
        assert cfg.model.type == 'frn_mmdet.ImageClassifier'
        assert 'norm_cfg' not in cfg.model.backbone


def test_one_variable_names_the_imagenet_folder(monkeypatch):
    monkeypatch.setenv('IMAGENET_ROOT', '/somewhere')
    for path in IMAGENET:
        cfg = Config.fromfile(path)
        for split in ('train', 'val', 'test'):
            assert cfg[f'{split}_dataloader'].dataset.data_root == '/somewhere'
