"""A detector with all of its weights, for the tools that only use it."""

import copy
import os

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from ..errors import ConfigError
from .loading import checkpoints_explained


def read_config(config: str, checkpoint: str, cfg_options: dict) -> Config:
    """Read a tool's ``CONFIG``, if its ``CHECKPOINT`` is there as well.

    Args:
        config (str): A file.
        checkpoint (str): A file or a URL.
        cfg_options (dict): Changes to the config.

    Raises:
        ConfigError: If one of the files is not there.
    """
    for what, path in dict(config=config, checkpoint=checkpoint).items():
        if '://' not in path and not os.path.isfile(path):
            raise ConfigError(f'{what}: no file {path}')
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(cfg_options)
    return cfg


def load_detector(config: Config, checkpoint: str,
                  device: str = 'cpu') -> nn.Module:
    """Build a detector and load a checkpoint that is of it as a whole.

    mmdet's ``init_detector`` takes any checkpoint, and only warns of the
    layers that it leaves with random weights.

    Args:
        config (Config): Of the detector; it is not changed.
        checkpoint (str): A file or a URL.
        device (str): Defaults to 'cpu'.

    Returns:
        nn.Module: In test mode, with the attribute ``cfg``, as mmdet's
        ``inference_detector`` wants it.

    Raises:
        ConfigError: If the checkpoint is broken, or of another detector.
    """
    init_default_scope(config.get('default_scope', 'mmdet'))
    config = copy.deepcopy(config)
    # None of the config's own weights: the checkpoint brings them all.
    config.merge_from_dict({'model.backbone.init_cfg': None})
    model = revert_sync_batchnorm(MODELS.build(config.model))
    with checkpoints_explained():
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    model.cfg = config
    return model.to(device).eval()
