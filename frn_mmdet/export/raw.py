"""A detector up to the maps that its dense head makes."""

from torch import Tensor, nn

from ..errors import ConfigError


class RawMaps(nn.Module):
    """Backbone, neck and dense head, without what follows.

    Args:
        detector (nn.Module): One of mmdet's with a ``bbox_head``, or with an
            ``rpn_head``: then of two stages the first.

    Raises:
        ConfigError: If the detector has neither.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        heads = [name for name in ('rpn_head', 'bbox_head')
                 if hasattr(detector, name)]
        if not heads:
            raise ConfigError(f'model.type: {type(detector).__name__} has no '
                              'rpn_head or bbox_head, so no raw maps')
        self.detector = detector
        self.head = heads[0]

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Run.

        Args:
            images (Tensor): Shape (N, 3, H, W), normalised.

        Returns:
            tuple: Of each kind of map that the head makes, its levels, each
            (N, channels, H, W). Of a two-stage detector the first are the
            neck's, which its second stage reads.
        """
        feats = tuple(self.detector.extract_feat(images))
        maps = tuple(map(tuple, getattr(self.detector, self.head)(feats)))
        return (feats, *maps) if self.head == 'rpn_head' else maps
