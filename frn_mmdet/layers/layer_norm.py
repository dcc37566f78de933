"""Layer normalisation of a feature map, as the FRN paper compares with."""

from torch import nn

from ..registry import MODELS


@MODELS.register_module(name='LN')
class MapLayerNorm(nn.GroupNorm):
    """Layer normalisation over (C, H, W) of one image: one group.

    mmcv's ``LN`` is ``nn.LayerNorm(C)``, which normalises the *last*
    dimension and so cannot take a (N, C, H, W) map. The name ``LN`` belongs
    to it in the root registry, so this one is ``frn_mmdet.LN``.

    Args:
        num_features (int): Channels C.
        eps (float): Added to the variance. Defaults to 1e-5.
    """

    # Not GroupNorm's: the keys of a checkpoint tell LN from GN by it.
    _abbr_ = 'ln'

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(1, num_features, eps=eps)
