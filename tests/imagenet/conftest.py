"""Classifiers built the way mmpretrain builds them: from a config."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

ROOT = Path(__file__).parents[2]
OURS = dict(
    ResNetV2=ROOT / 'configs/imagenet/resnetv2-50_8xb32-60e_in1k.py',
    InceptionV3=ROOT / 'configs/imagenet/inception-v3_8xb32-60e_in1k.py')


@pytest.fixture
def config(tmp_path):
    """config(name) is one of this repository's configs or of mmpretrain's."""

    def _config(name):
        if name in OURS:
            return Config.fromfile(OURS[name])
        (tmp_path / 'config.py').write_text(f"_base_ = '{name}'\n")
        return Config.fromfile(tmp_path / 'config.py')

    return _config


@pytest.fixture
def build(config):
    """build(name, norm_cfg, options): a classifier, keys of it changed."""
    from mmpretrain.registry import MODELS

    def _build(name, norm_cfg='FRN', options=None):
        init_default_scope('mmpretrain')
        cfg = config(name)
        cfg.model.type = 'frn_mmdet.ImageClassifier'
        cfg.model.norm_cfg = norm_cfg
        cfg.merge_from_dict({
            f'model.{key}': value for key, value in (options or {}).items()})
        torch.manual_seed(0)
        return MODELS.build(cfg.model)

    return _build
