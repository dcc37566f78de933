"""What a detector's ``test_cfg`` asks for, as far as an export does it."""

from typing import NamedTuple

from torch import nn

from ..errors import ConfigError
from ..layers.arguments import is_number, is_whole

NMS_KEYS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
SPLIT_THR = 10000  # mmcv's default


class Settings(NamedTuple):
    """How maps become detections.

    Attributes:
        score_thr (float): Detections have a higher score.
        nms_pre (int): Candidates of a level, the best.
        max_per_img (int): Detections of an image, the best.
        min_bbox_size (float): Both sides of a box are longer, in pixels;
            below 0: boxes may have any.
        iou_threshold (float): A box goes if it overlaps more than this with
            a better one.
        class_agnostic (bool): Whether also with one of another class.
    """

    score_thr: float
    nms_pre: int
    max_per_img: int
    min_bbox_size: float
    iou_threshold: float
    class_agnostic: bool


def read_settings(head: nn.Module) -> Settings:
    """Read a head's ``test_cfg``; what is left out is as mmdet has it.

    Args:
        head (nn.Module): A dense head with anchors.

    Raises:
        ConfigError: If it asks for something that is not exported.
    """
    cfg = head.test_cfg or {}
    for key in 'nms_pre', 'max_per_img':
        value = cfg.get(key)
        if not is_whole(value) or value < 1:
            raise ConfigError(f'model.test_cfg.{key}: {value!r}; to be '
                              'exported it must be a whole number, 1 or more')
    nms = cfg.get('nms') or {}
    if nms.get('type', 'nms') != 'nms' or 'iou_threshold' not in nms or (
            set(nms) - NMS_KEYS):
        raise ConfigError(
            f'model.test_cfg.nms: {dict(nms) or None} is not exported, only '
            "dict(type='nms', iou_threshold=...) is")
    settings = Settings(
        cfg.get('score_thr', 0), cfg['nms_pre'], cfg['max_per_img'],
        cfg.get('min_bbox_size', -1), nms['iou_threshold'],
        bool(nms.get('class_agnostic', False)))
    for key, value in (('score_thr', settings.score_thr),
                       ('min_bbox_size', settings.min_bbox_size),
                       ('nms.iou_threshold', settings.iou_threshold)):
        if not is_number(value):
            raise ConfigError(
                f'model.test_cfg.{key}: {value!r} is not a number')
    most = settings.nms_pre * head.prior_generator.num_levels
    split = nms.get('split_thr', SPLIT_THR)
    if settings.class_agnostic and most >= split:
        raise ConfigError(
            f'model.test_cfg.nms.class_agnostic: mmcv drops it from {split} '
            f'candidates on, and there may be {most}; to be exported '
            'split_thr must be more than that')
    return settings
