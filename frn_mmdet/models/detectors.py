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


# Those of mmdet's other detectors whose stock configs have been switched. A
# part in which the switch cannot place a TLU (an FPN that has ReLUs of its
# own, say) is an error that names it.
for _name in ('ATSS', 'AutoAssign', 'CondInst', 'DDOD', 'FCOS', 'FOVEA',
              'FSAF', 'GFL', 'HybridTaskCascade', 'MaskScoringRCNN', 'PAA',
              'PointRend', 'RepPointsDetector', 'SOLO', 'SOLOv2', 'TOOD',
              'VFNet'):
    globals()[_name] = MODELS.register_module(
        module=type(_name, (NormSwitch, getattr(detectors, _name)), dict(
            __module__=__name__,
            __doc__=f"mmdet's {_name}; see :class:`NormSwitch` for "
            '``norm_cfg``.')))
