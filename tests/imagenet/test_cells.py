"""The small network learns at two images a step; a backbone starts from it."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')

import cv2  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from frn_mmdet.models import ResNetV2  # noqa: E402

CONFIG = Path(__file__).parents[2] / (
    'configs/imagenet/resnetv2-18_1xb32-10e_bccd-cells.py')


@pytest.fixture
def stripes(tmp_path):
    """Three classes that differ in nothing but a direction."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    ways = dict(RBC=y, WBC=x, Platelets=x + y)
    for split, number in (('train', 40), ('val', 20)):
        for name, way in ways.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                wave = np.sin(way * .8 + generator.uniform(0, 7))
                noise = generator.normal(0, .5, (64, 64, 3))
                image = 128 + 60 * (wave[..., None] + noise)
                cv2.imwrite(str(folder / f'{i}.png'), image.clip(0, 255))
    return tmp_path


def test_frn_learns_at_two_images_a_step(stripes, monkeypatch):
    monkeypatch.setenv('CELLS_ROOT', str(stripes))
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict({
        'train_dataloader.batch_size': 2, 'train_cfg.max_epochs': 8,
        'train_cfg.val_interval': 8, 'param_scheduler.1.end': 8,
        'param_scheduler.1.T_max': 7, 'randomness.seed': 0})
    # a flip would turn the oblique stripes, which at test it does not
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [
        step for step in pipeline if step.type != 'RandomFlip']
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.work_dir = str(stripes / 'work_dir')
    runner = Runner.from_cfg(cfg)
    runner.train()
    accuracy = runner.message_hub.get_scalar('val/accuracy/top1').current()
    assert accuracy > 70  # chance is 33

    backbone = ResNetV2(
        18, base_channels=16, num_stages=3, strides=(1, 2, 2),
        out_indices=(1, 2), norm_cfg=dict(type='frn_mmdet.FRN', tlu=True),
        init_cfg=dict(type='Pretrained', prefix='backbone.',
                      checkpoint=f'{cfg.work_dir}/epoch_8.pth'))
    backbone.init_weights()
    trained = runner.model.backbone.state_dict()
    state = backbone.state_dict()
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[key], trained[key]) for key in state)
