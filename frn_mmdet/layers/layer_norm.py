"""Layer normalisation of a feature map, as the FRN paper compares with."""

import torch
from torch import Tensor, nn

from ..ops.check import check_dtype
from ..ops.definition import exported, per_channel
from ..ops.grouped import How, grouped_norm
from ..registry import MODELS
from .arguments import check_count, check_eps
from .fx import Proxy, one_call
from .reference import Reference


@MODELS.register_module(name='LN')
class MapLayerNorm(Reference, nn.GroupNorm):
    """Layer normalisation over (C, H, W) of one image: one group.

    mmcv's ``LN`` is ``nn.LayerNorm(C)``, which normalises the *last*
    dimension and so cannot take a (N, C, H, W) map. The name ``LN`` belongs
    to it in the root registry, so this one is ``frn_mmdet.LN``.

    Args:
        num_features (int): Channels C.
        eps (float): Added to the variance, 0 or more. Defaults to 1e-5.
        share (float, optional): 0 to 1: have reference statistics, see
            :class:`.reference.Reference`. Defaults to None.
        device (torch.device, optional): Of the parameters and buffers.
        dtype (torch.dtype, optional): Likewise.

    Raises:
        ConfigError: If an argument is out of its range.
    """

    # Not GroupNorm's: the keys of a checkpoint tell LN from GN by it.
    _abbr_ = 'ln'

    def __init__(self,
                 num_features: int,
                 eps: float = 1e-5,
                 share: float | None = None,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        check_count('LN', 'num_features', num_features)
        check_eps('LN', eps)
        super().__init__(1, num_features, eps=eps, device=device, dtype=dtype)
        self.init_reference(share)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each image.

        Raises:
            ValueError: If ``x`` has no float dtype.
        """
        if isinstance(x, Proxy):
            return one_call(self, x)
        check_dtype('LN input', x)
        if self.has_reference:
            return grouped_norm(x, How(1, self.eps, True, self.share),
                                self.weight, self.bias, self.ref_mean,
                                self.ref_var)
        if exported() or x.numel():
            return super().forward(x)
        # GroupNorm's gradients of parameters would be NaN.
        y = x * per_channel(self.weight, x) + per_channel(self.bias, x)
        return y.to(x.dtype)
