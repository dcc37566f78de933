"""The config of one training of a comparison."""

import copy
import inspect
from pathlib import Path
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config

from ..errors import ConfigError
from ..models import NormSwitch
from ..registry import MODELS as OURS
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


def switch_model(model: dict, norm_cfg: dict | None) -> None:
    """Set, in place, a detector's one key.

    Raises:
        ConfigError: If there is no such detector that takes it.
    """
    cls = _class_of(model.get('type'), model.get('_scope_'))
    # One that takes norm_cfg stays as it is written.
    if not (inspect.isclass(cls) and issubclass(cls, NormSwitch)):
        model['type'] = _name_with_norm_cfg(cls, model.get('type'))
    model['norm_cfg'] = norm_cfg


def _name_with_norm_cfg(cls: Any, written: Any) -> str:
    """The name under which one of mmdet's classes takes norm_cfg."""
    if not inspect.isclass(cls):
        raise ConfigError(
            f'model.type: {written} is no class; if it is your own, name its '
            'file in custom_imports')
    # The class itself, for one of the user's may be called RetinaNet, too.
    ours = OURS.module_dict.get(cls.__name__)
    if inspect.isclass(ours) and issubclass(ours, cls):
        return f'frn_mmdet.{cls.__name__}'
    raise ConfigError(
        f'model.type: {written} is {cls.__module__}.{cls.__qualname__}, which '
        'has no norm_cfg; README.md shows the three lines that give it one '
        '(name their file in custom_imports)')


def _class_of(type_: Any, scope: str | None) -> Any:
    """What mmengine would build of a type; None if it finds nothing."""
    if not isinstance(type_, str):
        return type_
    with MODELS.switch_scope_and_registry(scope) as registry:
        try:
            return registry.get(type_)
        except RuntimeError:
            return None


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
