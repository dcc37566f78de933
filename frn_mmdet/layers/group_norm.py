"""PyTorch's norms of one image, which may go on from a BatchNorm's."""

import torch
from torch import Tensor, nn

from ..ops.grouped import How, grouped_norm
from ..registry import MODELS
from .fx import Proxy, one_call
from .reference import Reference


@MODELS.register_module()
class GN(Reference, nn.GroupNorm):
    r"""Group normalisation, PyTorch's unless it has reference statistics.

    The name ``GN`` of the root registry is PyTorch's own layer; this one is
    ``frn_mmdet.GN``.

    Args:
        num_features (int): Channels C.
        num_groups (int): Groups; they divide C. Defaults to 32.
        eps (float): Added to the variance. Defaults to 1e-5.
        affine (bool): Have gamma and beta. Defaults to True.
        bias (bool): Have beta, where there is gamma. Defaults to True.
        share (float, optional): 0 to 1: have reference statistics, see
            :class:`.reference.Reference`. Defaults to None.
        device (torch.device, optional): Of the parameters and buffers.
        dtype (torch.dtype, optional): Likewise.

    Raises:
        ValueError: If the groups do not divide the channels.
        ConfigError: If ``share`` is no number from 0 to 1.
    """

    _abbr_ = 'gn'

    def __init__(self,
                 num_features: int,
                 num_groups: int = 32,
                 eps: float = 1e-5,
                 affine: bool = True,
                 bias: bool = True,
                 share: float | None = None,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__(num_groups, num_features, eps=eps, affine=affine,
                         device=device, dtype=dtype)
        if not bias:
            self.bias = None
        self.init_reference(share)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each group of each image."""
        if isinstance(x, Proxy):
            return one_call(self, x)
        if not self.has_reference:
            return super().forward(x)
        return grouped_norm(
            x, How(self.num_groups, self.eps, True, self.share), self.weight,
            self.bias, self.ref_mean, self.ref_var)


@MODELS.register_module()
class IN(Reference, nn.InstanceNorm2d):
    r"""Instance normalisation, PyTorch's unless it has reference statistics.

    The name ``IN`` of the root registry is PyTorch's own layer; this one is
    ``frn_mmdet.IN``.

    Args:
        num_features (int): Channels C.
        eps (float): Added to the variance. Defaults to 1e-5.
        momentum (float): Of running statistics. Defaults to 0.1.
        affine (bool): Have gamma and beta. Defaults to False.
        track_running_stats (bool): Have running statistics, which normalise
            in test mode, if there is no reference. Defaults to False.
        bias (bool): Have beta, where there is gamma. Defaults to True.
        share (float, optional): 0 to 1: have reference statistics, see
            :class:`.reference.Reference`. Defaults to None.
        device (torch.device, optional): Of the parameters and buffers.
        dtype (torch.dtype, optional): Likewise.

    Raises:
        ConfigError: If ``share`` is no number from 0 to 1.
    """

    _abbr_ = 'in'

    def __init__(self,
                 num_features: int,
                 eps: float = 1e-5,
                 momentum: float = 0.1,
                 affine: bool = False,
                 track_running_stats: bool = False,
                 bias: bool = True,
                 share: float | None = None,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__(num_features, eps, momentum, affine,
                         track_running_stats, device=device, dtype=dtype)
        if not bias:
            self.bias = None
        self.init_reference(share)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each image."""
        if isinstance(x, Proxy):
            return one_call(self, x)
        return super().forward(x)

    def _apply_instance_norm(self, x: Tensor) -> Tensor:
        # What forward calls when it has looked at the shape.
        if not self.has_reference:
            return super()._apply_instance_norm(x)
        return grouped_norm(
            x, How(self.num_features, self.eps, True, self.share),
            self.weight, self.bias, self.ref_mean, self.ref_var)
