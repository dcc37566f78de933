"""The config of one training of a comparison."""

import copy
from pathlib import Path

from mmengine.config import Config

from ..switch.norms import read_norm
from .cell import Cell
from .schedule import scale_steps, set_peak_lr

# Steps between looks at the loss: a training that diverged ends early.
LOSS_INTERVAL = 10


def cell_config(base: Config, cell: Cell, lr: float, steps: int,
                factor: float, folder: Path) -> Config:
    """Write a cell into a config.

    Args:
        base (Config): The user's, which is not changed. Its detector takes
            a norm_cfg.
        cell (Cell): What to train.
        lr (float): Its peak learning rate.
        steps (int): How many steps that will be.
        factor (float): What is counted in steps is multiplied by it.
        folder (Path): Where the training writes.

    Returns:
        Config: Ready for ``tools/train.py``.
    """
    cfg = copy.deepcopy(base)
    cfg.model.norm_cfg = read_norm(cell.norm)
    cfg.train_dataloader.batch_size = cell.batch
    set_peak_lr(cfg, lr)
    scale_steps(cfg, factor)
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=cell.seed)
    cfg.auto_scale_lr = None  # it is scaled already
    cfg.resume = False  # the Runner's to say
    if cfg.optim_wrapper.get('paramwise_cfg'):
        # A head with a norm per pyramid level shares its convolutions.
        cfg.optim_wrapper.paramwise_cfg.setdefault('bypass_duplicate', True)
    _set_hooks(cfg, steps)
    cfg.work_dir = str(folder)
    return cfg


def _set_hooks(cfg: Config, steps: int) -> None:
    """Log what a comparison reads, and keep one checkpoint of each cell."""
    hooks = dict(cfg.get('default_hooks') or {})
    logger = hooks.get('logger') or dict(type='LoggerHook')
    interval = min(logger.get('interval', 10), max(1, steps // 20))
    hooks['logger'] = dict(logger, interval=interval)
    if hooks.get('checkpoint'):
        hooks['checkpoint']['max_keep_ckpts'] = 1
    cfg.default_hooks = hooks
    custom = list(cfg.get('custom_hooks') or [])
    if all(hook.get('type') != 'CheckInvalidLossHook' for hook in custom):
        custom.append(
            dict(type='CheckInvalidLossHook', interval=LOSS_INTERVAL))
    cfg.custom_hooks = custom
    visualizer = cfg.get('visualizer') or dict(type='DetLocalVisualizer')
    backends = list(visualizer.get('vis_backends') or [])
    if all(b.get('type') != 'LocalVisBackend' for b in backends):
        backends.append(dict(type='LocalVisBackend'))
    cfg.visualizer = dict(visualizer, vis_backends=backends)
