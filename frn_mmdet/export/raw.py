"""A detector up to the maps that its dense head makes."""

import inspect

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn

from ..errors import ConfigError


class RawMaps(nn.Module):
    """Backbone, neck and dense head, without what follows.

    Args:
        detector (nn.Module): One of mmdet's with a dense ``bbox_head``, or
            with a dense ``rpn_head``: then of two stages the first.

    Attributes:
        dtype (torch.dtype): Of the detector's weights.

    Raises:
        ConfigError: If the detector has neither.
    """

    dtype = torch.float32

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        heads = [name for name in ('rpn_head', 'bbox_head')
                 if isinstance(getattr(detector, name, None), BaseDenseHead)]
        if not heads:
            raise ConfigError(f'model.type: {type(detector).__name__} has no '
                              'dense rpn_head or bbox_head, so no raw maps')
        self.detector = detector
        self.head = heads[0]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Run.

        Args:
            images (Tensor): Shape (N, C, H, W), float32, normalised.

        Returns:
            dict[str, Tensor]: Of each kind of map that the head makes, its
            levels from the finest, each (N, channels, h, w), float32. A kind
            has the name that mmdet gives it, and a level its number:
            ``cls_scores_0``, ``bbox_preds_0``, ``centernesses_0``. Those of
            a two-stage detector begin with ``rpn_``, and before them come
            the neck's, which its second stage reads: ``neck_0``.
        """
        feats = self.detector.extract_feat(images.to(self.dtype))
        head = getattr(self.detector, self.head)
        kinds = head(feats)
        names = names_of(head, len(kinds))
        if self.head == 'rpn_head':
            kinds = (feats, *kinds)
            names = ['neck', *(f'rpn_{name}' for name in names)]
        # One for all levels (RTMDet's mask_feat) is a tensor.
        return {f'{name}_{level}': x.float()
                for name, maps in zip(names, kinds, strict=True)
                for level, x in enumerate(
                    [maps] if isinstance(maps, Tensor) else maps)}


def names_of(head: BaseDenseHead, count: int) -> list[str]:
    """What mmdet calls the ``count`` kinds of maps that a head makes.

    They are the first arguments of its methods that read them. Those of
    ``loss_by_feat`` say more, but there may be others in training; those of
    ``predict_by_feat`` are always these.
    """
    names = list(inspect.signature(head.loss_by_feat).parameters)
    if names[count:count + 1] != ['batch_gt_instances']:
        names = list(inspect.signature(head.predict_by_feat).parameters)
    return names[:count]
