"""Detectors whose norms are one key of the config."""

from .detectors import CascadeRCNN, FasterRCNN, MaskRCNN, RetinaNet
from .norm_switch import NormSwitch

__all__ = [
    'CascadeRCNN', 'FasterRCNN', 'MaskRCNN', 'NormSwitch', 'RetinaNet'
]
