"""Give a config's detector the one key, whatever class the user wrote."""

import inspect
from typing import Any

from mmdet.registry import MODELS

from ..errors import ConfigError
from ..models import NormSwitch
from ..registry import MODELS as OURS


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
