"""Write a plan into the config of every part of a model."""

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import BRN
from .family import models
from .norms import NormPlan, part_of

# The norm of an upsampling layer is handed to it by its owner.
NORM_IS_GIVEN = {'norm_cfg', 'upsample_cfg'}
# Keys of a model config that hold no layers.
NOT_PARTS = {'type', 'data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg'}


def set_norms(model_cfg: dict, plan: NormPlan) -> list[str]:
    """Give, in place, every part of the plan the plan's norm.

    A ``norm_cfg`` that is there is replaced as a whole, so nothing of it
    leaks into the new one. One is added wherever the class takes the
    argument. What is over tokens or points, not over a map, is left alone.

    Args:
        model_cfg (dict): A detector's config.
        plan (NormPlan): What ``model.norm_cfg`` asks for.

    Returns:
        list[str]: Sentences for the report: where gamma and beta were fixed
        and train from now on.
    """
    changes, trains = [], plan.norm_cfg.get('requires_grad', True)
    for key, part in planned_parts(model_cfg, plan):
        for path, cfg in dicts_of(part, key):
            has_norm = 'norm_cfg' in cfg or takes(cfg.get('type'), 'norm_cfg')
            if not has_norm or is_over_tokens(cfg):
                continue
            old = _given_or_default(cfg, 'norm_cfg')
            if trains and not old.get('requires_grad', True):
                changes.append(
                    f'{path}.norm_cfg.requires_grad: False -> True, gamma '
                    f'and beta of its {plan.name} train '
                    '(model.norm_cfg.requires_grad=False fixes those of '
                    f'{", ".join(plan.parts)})')
            cfg['norm_cfg'] = dict(plan.norm_cfg)
    return changes


def is_over_tokens(cfg: dict) -> bool:
    """Whether a class normalises tokens (N, L, C) or points (N, C, P).

    nn.LayerNorm takes the last dimension for channels. With the points of
    PointRend a norm would make the mask of one depend on the others drawn.

    Args:
        cfg (dict): The config that it is built from.
    """
    layers = [class_of(_given_or_default(cfg, key).get('type'))
              for key in ('norm_cfg', 'conv_cfg')]
    return layers[0] is nn.LayerNorm or layers[1] is nn.Conv1d


def _given_or_default(cfg: dict, key: str) -> dict:
    return cfg.get(key, default_of(cfg.get('type'), key, None)) or {}


def bn_eps(model_cfg: dict, plan: NormPlan) -> dict[str, float]:
    """The eps of the BatchNorms that mmdet itself would build.

    Weights that were trained with BN hold its statistics, but not what is
    added to their variance. So it is read before :func:`set_norms`.

    Args:
        model_cfg (dict): A detector's config, as it was given.
        plan (NormPlan): What ``model.norm_cfg`` asks for.

    Returns:
        dict[str, float]: By path in the config, which is that of the module;
        only where an eps is given.
    """
    found = {}
    for key, part in planned_parts(model_cfg, plan):
        for path, cfg in dicts_of(part, key):
            norm_cfg = _given_or_default(cfg, 'norm_cfg')
            if 'eps' in norm_cfg and _is_bn(norm_cfg.get('type')):
                found[path] = norm_cfg['eps']
    return found


def _is_bn(type_: Any) -> bool:
    cls = class_of(type_)
    return cls is not None and issubclass(cls, _BatchNorm) and not issubclass(
        cls, BRN)


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


def dicts_of(value: Any, path: str) -> Iterator[tuple[str, dict]]:
    """Every dict in a part's config, but none in a ``norm_cfg`` or the like.

    Args:
        value (Any): The config.
        path (str): Its path.

    Yields:
        tuple[str, dict]: Path and dict, the outer before the inner.
    """
    if isinstance(value, dict):
        yield path, value
        for key, child in value.items():
            if key not in NOT_PARTS | NORM_IS_GIVEN:
                yield from dicts_of(child, f'{path}.{key}')
    elif isinstance(value, (list, tuple)):
        for i, child in enumerate(value):
            yield from dicts_of(child, f'{path}.{i}')


def takes(type_: Any, argument: str) -> bool:
    """Whether a class takes an argument, also by ``**kwargs`` to a base.

    Args:
        type_ (str or type): The class, or its name in :func:`~.family.models`.
        argument (str): Name of the argument.

    Returns:
        bool: False also for a name that is not in the registry.
    """
    return _parameter(type_, argument) is not None


def default_of(type_: Any, argument: str, otherwise: Any) -> Any:
    """The default of a class's argument.

    Args:
        type_ (str or type): See :func:`takes`.
        argument (str): Name of the argument.
        otherwise (Any): Where it takes none, or has no default.
    """
    parameter = _parameter(type_, argument)
    if parameter is None or parameter.default is parameter.empty:
        return otherwise
    return parameter.default


def class_of(type_: Any) -> type | None:
    """The class of a config's ``type``; None if the registry has none."""
    cls = models().get(type_) if isinstance(type_, str) else type_
    return cls if inspect.isclass(cls) else None


def _parameter(type_: Any, argument: str) -> inspect.Parameter | None:
    cls = class_of(type_)
    if cls is None:
        return None
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        params = inspect.signature(base.__init__).parameters
        if argument in params:
            return params[argument]
        if all(p.kind is not p.VAR_KEYWORD for p in params.values()):
            return None
    return None
