"""Models whose norms are one key of the config, and a backbone."""

from . import classifiers  # noqa: F401  (registers its types)
from .norm_switch import NormSwitch
from .resnet_v2 import ResNetV2

__all__ = ['NormSwitch', 'ResNetV2']

try:
    from .detectors import CascadeRCNN, FasterRCNN, MaskRCNN, RetinaNet
    __all__ += ['CascadeRCNN', 'FasterRCNN', 'MaskRCNN', 'RetinaNet']
except ModuleNotFoundError as error:
    if error.name != 'mmdet':  # a classifier does without it
        raise
