"""A RetinaNet from its input to its detections, as tensor operators alone."""

import math

import torch
from mmdet.models.dense_heads import AnchorHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import RetinaNet, SingleStageDetector
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

from ..errors import ConfigError
from ..models.norm_switch import NormSwitch
from .nms import NONE, nms_scores
from .settings import read_settings

# What the head's own `predict` consists of, and what is done here.
PREDICT = ('predict', 'predict_by_feat', '_predict_by_feat_single',
           '_bbox_post_process')
NOWHERE = -1e30  # pixels: less than a coordinate of any box


class Detections(nn.Module):
    """What ``predict`` of a RetinaNet finds, of a batch at once.

    The detector's own backbone, neck and head run. What follows is written
    anew, from the head's parameters: mmdet's goes image by image, with
    shapes that depend on what is found.

    Args:
        detector (nn.Module): A RetinaNet, in test mode.

    Attributes:
        dtype (torch.dtype): Of the detector's weights.
        settings (Settings): Of its ``test_cfg``.

    Raises:
        ConfigError: If it is another detector, or its ``test_cfg`` asks for
            something that is not done here; at call, if its head makes more
            than scores and boxes.
    """

    dtype = torch.float32

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        check(detector)
        self.detector = detector
        self.settings = read_settings(detector.bbox_head)

    def forward(self, images: Tensor,
                sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Detect.

        Args:
            images (Tensor): Shape (N, C, H, W), float32, normalised and
                padded as the detector's ``data_preprocessor`` leaves them.
            sizes (Tensor): Shape (N, 2), int64: height and width in pixels
                of each image without its padding; boxes end there.

        Returns:
            tuple[Tensor]: ``dets``, shape (N, M, 5), float32: boxes (x1, y1,
            x2, y2) in pixels of ``images`` and scores, the best first; and
            ``labels``, shape (N, M), int64. M is ``max_per_img``, less where
            an image has fewer anchors. Rows that are no detection have a
            score and a box of 0 and the label -1.
        """
        head = self.detector.bbox_head
        asked = self.settings
        maps = head(self.detector.extract_feat(images.to(self.dtype)))
        if len(maps) != 2:  # ATSS: how well each box is centred
            raise ConfigError(
                f'model.bbox_head: {type(head).__name__} makes more than '
                'scores and boxes, which is not exported')
        scores, labels, boxes = self._candidates(*maps, sizes)
        valid = scores > asked.score_thr
        if asked.min_bbox_size >= 0:
            sides = boxes[..., 2:] - boxes[..., :2]
            valid &= (sides > asked.min_bbox_size).all(-1)
        scores = torch.where(valid, scores, NONE)
        compete = boxes if asked.class_agnostic else apart(
            boxes, labels, valid)
        scores = nms_scores(compete, scores, float(asked.iou_threshold),
                            asked.max_per_img)
        scores, best = scores.topk(
            torch.sym_min(asked.max_per_img, scores.shape[1]))
        found = scores >= 0
        dets = torch.cat([pick(boxes, best), scores[..., None]], -1)
        return (torch.where(found[..., None], dets, 0.),
                torch.where(found, labels.gather(1, best), -1))

    def _candidates(self, cls_scores: list[Tensor],
                    bbox_preds: list[Tensor],
                    sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best ``nms_pre`` of each level, shapes (N, K[, 4])."""
        head = self.detector.bbox_head
        all_priors = head.prior_generator.grid_priors(
            [x.shape[-2:] for x in cls_scores], device=sizes.device)
        levels = []
        for scores, deltas, priors in zip(
                cls_scores, bbox_preds, all_priors, strict=True):
            scores = rows(scores.float(), head.cls_out_channels)
            if not head.use_sigmoid_cls:
                scores = scores.softmax(-1)[..., :-1]
            classes = scores.shape[-1]
            scores = scores.flatten(1)
            scores, best = scores.topk(
                torch.sym_min(self.settings.nms_pre, scores.shape[1]))
            anchors = best // classes
            levels.append((scores, best % classes,
                           get_box_tensor(priors)[anchors],
                           pick(rows(deltas.float(), 4), anchors)))
        scores, labels, priors, deltas = (
            torch.cat(level, 1) for level in zip(*levels, strict=True))
        if head.use_sigmoid_cls:  # of these alone: it keeps the order
            scores = scores.sigmoid()
        return scores, labels, decode(priors, deltas, sizes, head.bbox_coder)


def check(detector: nn.Module) -> None:
    """Refuse what :class:`Detections` would not do as ``predict`` does.

    Raises:
        ConfigError: With what it is.
    """
    if not isinstance(detector, RetinaNet):
        raise ConfigError(f'model.type: {type(detector).__name__} is not '
                          'exported, only RetinaNet is')
    if next(cls for cls in type(detector).__mro__ if cls is not NormSwitch
            and 'predict' in vars(cls)) is not SingleStageDetector:
        raise ConfigError(f'model.type: {type(detector).__name__} predicts '
                          'in a way of its own, which is not exported')
    head = detector.bbox_head
    if (not isinstance(head, AnchorHead)
            or any(getattr(type(head), name) is not getattr(
                BaseDenseHead, name) for name in PREDICT)
            or getattr(head.loss_cls, 'custom_cls_channels', False)):
        raise ConfigError(f'model.bbox_head: {type(head).__name__} predicts '
                          'in a way of its own, which is not exported')
    for key, part, wanted in (
            ('anchor_generator', head.prior_generator, AnchorGenerator),
            ('bbox_coder', head.bbox_coder, DeltaXYWHBBoxCoder)):
        if type(part) is not wanted:
            raise ConfigError(
                f'model.bbox_head.{key}: {type(part).__name__} is not '
                f'exported, only {wanted.__name__} is')


def rows(x: Tensor, channels: int) -> Tensor:
    """A map (N, A * channels, H, W) as (N, H * W * A, channels)."""
    # Not reshape(N, -1, channels): it cannot tell what -1 is of no image.
    return x.permute(0, 2, 3, 1).unflatten(3, (-1, channels)).flatten(1, 3)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Of x, shape (N, K, 4), the rows at index, shape (N, M)."""
    return x.gather(1, index[..., None].expand(-1, -1, 4))


def decode(priors: Tensor, deltas: Tensor, sizes: Tensor,
           coder: DeltaXYWHBBoxCoder) -> Tensor:
    """Boxes (x1, y1, x2, y2) in pixels, as ``coder.decode`` has them.

    Args:
        priors (Tensor): Anchors, shape (N, K, 4), in pixels.
        deltas (Tensor): What the head predicts, shape (N, K, 4).
        sizes (Tensor): Shape (N, 2): height and width that boxes end at.
        coder (DeltaXYWHBBoxCoder): Its parameters are read.

    Returns:
        Tensor: Shape (N, K, 4).
    """
    deltas = (deltas * deltas.new_tensor(coder.stds)
              + deltas.new_tensor(coder.means))
    size = priors[..., 2:] - priors[..., :2]
    shift = size * deltas[..., :2]
    grow = deltas[..., 2:]
    most = abs(math.log(16 / 1000))  # the default of delta2bbox
    if coder.add_ctr_clamp:
        shift = shift.clamp(-coder.ctr_clamp, coder.ctr_clamp)
        grow = grow.clamp(max=most)
    else:
        grow = grow.clamp(-most, most)
    centre = (priors[..., :2] + priors[..., 2:]) * 0.5 + shift
    half = size * grow.exp() * 0.5
    boxes = torch.cat([centre - half, centre + half], -1)
    if coder.clip_border:
        ends = sizes.to(boxes).flip(1).repeat(1, 2)[:, None]
        boxes = torch.minimum(boxes.clamp(min=0), ends)
    return boxes


def apart(boxes: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """The boxes moved so far that those of two classes do not overlap.

    mmcv's way, to the rounding: an image's classes are one competition,
    which ends at ``max_per_img`` boxes.
    """
    largest = torch.where(valid[..., None], boxes, NOWHERE).amax((1, 2))
    return boxes + (labels * (largest + 1)[:, None])[..., None]
