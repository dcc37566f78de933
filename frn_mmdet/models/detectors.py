"""Each of mmdet's detectors with ``norm_cfg``, under its own name.

One is whatever is built from a backbone. Trackers, semi-supervised training
and the like wrap a detector, and it is the one inside whose norms can be
switched.
"""

import inspect
from collections.abc import Callable

import mmdet.models
from mmdet.models.detectors.base import BaseDetector
from mmengine.model import BaseModel

from ..errors import ConfigError
from ..registry import MODELS
from ..switch.config import takes
from .norm_switch import NormSwitch


def _with_norm_cfg(cls: type) -> type:
    """A detector's class with the mixin, as if it were written here."""
    text = f"mmdet's {cls.__name__}; see :class:`NormSwitch` for ``norm_cfg``."
    return type(cls.__name__, (NormSwitch, cls),
                dict(__module__=__name__, __doc__=text))


def _refusal(name: str) -> Callable:
    """What the registry calls in place of a class that is no detector."""

    def refuse(**kwargs) -> None:
        raise ConfigError(
            f'model.type: frn_mmdet.{name}: {name} is not a detector of '
            "images; keep mmdet's, and give the detector in it "
            "type='frn_mmdet.…' and norm_cfg")

    return refuse


for _name, _cls in list(vars(mmdet.models).items()):
    if not (inspect.isclass(_cls) and issubclass(_cls, BaseModel)):
        continue
    if issubclass(_cls, BaseDetector) and takes(_cls, 'backbone'):
        globals()[_name] = MODELS.register_module(
            name=_name, module=_with_norm_cfg(_cls))
    else:
        MODELS.register_module(name=_name, module=_refusal(_name))
