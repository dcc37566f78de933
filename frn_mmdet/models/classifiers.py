"""What is of mmpretrain, under names that are there without it.

A registry holds classes or functions. Here these are functions, since
mmpretrain, which not everyone has, takes seconds to import: a detector must
not wait for it.
"""

from importlib import import_module

from torch import nn

from ..errors import ConfigError
from ..registry import MODELS


@MODELS.register_module()
def ImageClassifier(**kwargs) -> nn.Module:
    """Build mmpretrain's ImageClassifier with ``norm_cfg``.

    See :class:`~frn_mmdet.models.norm_switch.NormSwitch` for the key, and
    mmpretrain for all others.
    """
    return _class_of('ImageClassifier')(**kwargs)


@MODELS.register_module()
def AuxClsHead(**kwargs) -> nn.Module:
    """Build a :class:`~frn_mmdet.models.of_mmpretrain.AuxClsHead`."""
    return _class_of('AuxClsHead')(**kwargs)


def _class_of(name: str) -> type:
    try:
        import mmpretrain  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'model.type: frn_mmdet.{name} needs mmpretrain, and '
            f'{error.name} is not installed; pip install onedl-mmpretrain '
            "(or mmpretrain, beside OpenMMLab's mmcv), with the "
            'torchvision of your torch') from error
    return getattr(import_module('.of_mmpretrain', __package__), name)
