"""Write a plan into the config of every part of a detector."""

import inspect
from collections.abc import Iterator
from typing import Any

from mmdet.registry import MODELS

from .norms import NormPlan, part_of

# Keys of a model config that hold no layers.
NOT_PARTS = {'type', 'data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg'}


def set_norms(model_cfg: dict, plan: NormPlan) -> None:
    """Give, in place, every part of the plan the plan's norm.

    A ``norm_cfg`` that is there is replaced as a whole, so nothing of it
    leaks into the new one. One is added wherever the class takes the
    argument.

    Args:
        model_cfg (dict): A detector's config.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
    """
    for _key, part in planned_parts(model_cfg, plan):
        for cfg in _dicts(part):
            if 'norm_cfg' in cfg or takes(cfg.get('type'), 'norm_cfg'):
                cfg['norm_cfg'] = dict(plan.norm_cfg)


def planned_parts(model_cfg: dict,
                  plan: NormPlan) -> Iterator[tuple[str, Any]]:
    """The configs of the plan's parts, as (key, config).

    ``backbone`` and ``neck`` are the parts of these names; all else with
    layers in it (``bbox_head``, ``rpn_head``, ``roi_head``, ...) is head.
    """
    for key, cfg in model_cfg.items():
        if key in NOT_PARTS or not isinstance(cfg, (dict, list, tuple)):
            continue
        if part_of(key) in plan.parts:
            yield key, cfg


def _dicts(value: Any) -> Iterator[dict]:
    """Every dict in ``value``, but for those inside a ``norm_cfg``."""
    if isinstance(value, dict):
        yield value
        for key, child in value.items():
            if key not in NOT_PARTS | {'norm_cfg'}:
                yield from _dicts(child)
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from _dicts(child)


def takes(type_: Any, argument: str) -> bool:
    """Whether a class takes an argument, be it by ``**kwargs`` to a base.

    Args:
        type_ (str or type): The class, or its name in mmdet's registry.
        argument (str): Name of the argument.

    Returns:
        bool: False also for a name that is not in the registry.
    """
    cls = MODELS.get(type_) if isinstance(type_, str) else type_
    if not inspect.isclass(cls):
        return False
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        params = inspect.signature(base.__init__).parameters
        if argument in params:
            return True
        if all(p.kind is not p.VAR_KEYWORD for p in params.values()):
            return False
    return False
