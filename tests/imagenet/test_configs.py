"""The paper's configs, as mmpretrain runs them."""

import numpy as np
import pytest

pytest.importorskip('mmpretrain')

import cv2  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from frn_mmdet import FRN  # noqa: E402

IMAGES = 4


@pytest.fixture
def imagenet(tmp_path):
    """A few images in ImageNet's layout."""
    for split in ('train', 'val'):
        (tmp_path / split).mkdir()
        (tmp_path / 'meta').mkdir(exist_ok=True)
        names = [f'{i}.png' for i in range(IMAGES)]
        for i, name in enumerate(names):
            pixels = np.random.default_rng(i).integers(
                0, 255, (80, 100, 3), np.uint8)
            cv2.imwrite(str(tmp_path / split / name), pixels)
        (tmp_path / f'meta/{split}.txt').write_text(
            '\n'.join(f'{name} {i}' for i, name in enumerate(names)))
    return tmp_path


@pytest.mark.parametrize('name, size', [('ResNetV2', 64),
                                        ('InceptionV3', 299)])
def test_images_per_gpu_are_one_key(config, imagenet, monkeypatch, name,
                                    size):
    """Steps and LR follow it. Two steps of training, and a test."""
    monkeypatch.setenv('IMAGENET_ROOT', str(imagenet))
    cfg = config(name)
    cfg.merge_from_dict({'train_dataloader.batch_size': 2})
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].update(
            num_workers=0, persistent_workers=False)
        cfg[f'{split}_dataloader'].dataset.data_root = str(imagenet)
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    for step in (*cfg.train_dataloader.dataset.pipeline,
                 *cfg.val_dataloader.dataset.pipeline):
        for key in ('scale', 'crop_size'):
            if key in step:
                step[key] = size
    cfg.default_hooks.checkpoint = None
    cfg.work_dir = str(imagenet / 'work_dir')
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == IMAGES // 2
    groups = runner.optim_wrapper.optimizer.param_groups
    assert {group['initial_lr'] for group in groups} == {.1 * 2 / 256}
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss'].current())
    assert 'val/accuracy/top5' in scalars
    # Weights of convolutions and the classifier decay, and nothing else.
    decays = {id(p): group['weight_decay']
              for group in groups for p in group['params']}
    for module in runner.model.modules():
        for key, p in module.named_parameters(recurse=False):
            wanted = 1e-4 if key == 'weight' and not (
                isinstance(module, FRN)) else 0
            assert decays[id(p)] == wanted, (type(module), key)
