"""mmdet's detectors with ``norm_cfg``; another one is three lines."""

from mmdet.models import detectors

from ..registry import MODELS
from .norm_switch import NormSwitch


@MODELS.register_module()
class RetinaNet(NormSwitch, detectors.RetinaNet):
    """mmdet's RetinaNet; see :class:`NormSwitch` for ``norm_cfg``."""


@MODELS.register_module()
class FasterRCNN(NormSwitch, detectors.FasterRCNN):
    """mmdet's Faster R-CNN; see :class:`NormSwitch` for ``norm_cfg``."""


@MODELS.register_module()
class MaskRCNN(NormSwitch, detectors.MaskRCNN):
    """mmdet's Mask R-CNN; see :class:`NormSwitch` for ``norm_cfg``."""


@MODELS.register_module()
class CascadeRCNN(NormSwitch, detectors.CascadeRCNN):
    """mmdet's Cascade R-CNN; see :class:`NormSwitch` for ``norm_cfg``."""
