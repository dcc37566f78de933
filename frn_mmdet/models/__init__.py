"""Models whose norms are one key of the config, and a backbone."""

from .detectors import CascadeRCNN, FasterRCNN, MaskRCNN, RetinaNet
from .norm_switch import NormSwitch
from .resnet_v2 import ResNetV2

__all__ = [
    'CascadeRCNN', 'FasterRCNN', 'MaskRCNN', 'NormSwitch', 'ResNetV2',
    'RetinaNet'
]
