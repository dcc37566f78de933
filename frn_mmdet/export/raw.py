"""A detector up to the maps that its dense head makes."""

import torch
from torch import Tensor, nn

from ..errors import ConfigError


class RawMaps(nn.Module):
    """Backbone, neck and dense head, without what follows.

    Args:
        detector (nn.Module): One of mmdet's with a ``bbox_head``, or with an
            ``rpn_head``: then of two stages the first.

    Attributes:
        dtype (torch.dtype): Of the detector's weights.
        names (None): Of the outputs, which have none of their own.

    Raises:
        ConfigError: If the detector has neither.
    """

    dtype = torch.float32
    names = None

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        heads = [name for name in ('rpn_head', 'bbox_head')
                 if hasattr(detector, name)]
        if not heads:
            raise ConfigError(f'model.type: {type(detector).__name__} has no '
                              'rpn_head or bbox_head, so no raw maps')
        self.detector = detector
        self.head = heads[0]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Run.

        Args:
            images (Tensor): Shape (N, 3, H, W), float32, normalised.

        Returns:
            list[Tensor]: Of each kind of map that the head makes, its
            levels, each (N, channels, h, w), float32. Of a two-stage
            detector the neck's come first, which its second stage reads.
        """
        feats = self.detector.extract_feat(images.to(self.dtype))
        kinds = getattr(self.detector, self.head)(feats)
        if self.head == 'rpn_head':
            kinds = (feats, *kinds)
        return [x.float() for maps in kinds for x in maps]
