"""Group and layer normalisation by the uncentred second moment."""

import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from ..ops.grouped import How, grouped_norm
from ..registry import MODELS
from .arguments import check, check_count, check_eps, divisor
from .frn import EPS
from .fx import Proxy, one_call
from .mmcv_eps import eps_was_given
from .reference import Reference


@ROOT_MODELS.register_module()
@MODELS.register_module()
class GFRN(Reference, nn.GroupNorm):
    r"""Group normalisation without its mean: FRN over a group of channels.

    Singh and Krishnan, section 4.3, the ablation of where FRN's gain is
    from. ``nu2 = mean(x ** 2)`` over the channels of a group and all of
    space, then equations (1) and (2). FRN is GFRN of one channel a group.

    Args:
        num_features (int): Channels C.
        num_groups (int): Groups; they divide C. Defaults to 32.
        eps (float): Added to the mean square, 0 or more. Defaults to 1e-6.
        share (float, optional): 0 to 1: have reference statistics, see
            :class:`.reference.Reference`. Defaults to None.
        device (torch.device, optional): Of the parameters and buffers.
        dtype (torch.dtype, optional): Likewise.

    Shape:
        (N, C, \*spatial), any size may be 0; statistics are float32 for
        half types.

    Raises:
        ConfigError: If an argument is out of its range.
        ValueError: At call, if the input has another rank, other channels or
            no float dtype.
    """

    _abbr_ = 'gfrn'

    def __init__(self,
                 num_features: int,
                 num_groups: int = 32,
                 eps: float = EPS,
                 share: float | None = None,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        if not eps_was_given(self):
            eps = EPS
        layer = type(self).__name__
        check_count(layer, 'num_features', num_features)
        check_count(layer, 'num_groups', num_groups)
        check(layer, 'num_groups', num_groups, num_features % num_groups == 0,
              f'a divisor of num_features ({num_features}), such as '
              f'{divisor(num_features, num_groups)}')
        check_eps(layer, eps)
        super().__init__(num_groups, num_features, eps=eps, device=device,
                         dtype=dtype)
        self.init_reference(share)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each group of each image."""
        if isinstance(x, Proxy):
            return one_call(self, x)
        if x.dim() < 3 or x.shape[1] != self.num_channels:
            raise ValueError(
                f'{type(self).__name__} of {self.num_channels} channels takes '
                f'(N, {self.num_channels}, *spatial), got shape '
                f'{tuple(x.shape)}')
        return grouped_norm(
            x, How(self.num_groups, self.eps, False, self.share), self.weight,
            self.bias, self.ref_mean, self.ref_var)


@ROOT_MODELS.register_module()
@MODELS.register_module()
class LFRN(GFRN):
    """Layer normalisation without its mean: :class:`GFRN` of one group.

    Args:
        num_features (int): Channels C.
        eps (float): Added to the mean square, 0 or more. Defaults to 1e-6.
        share (float, optional): 0 to 1: have reference statistics, see
            :class:`.reference.Reference`. Defaults to None.
        device (torch.device, optional): Of the parameters and buffers.
        dtype (torch.dtype, optional): Likewise.
    """

    _abbr_ = 'lfrn'

    def __init__(self,
                 num_features: int,
                 eps: float = EPS,
                 share: float | None = None,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        if not eps_was_given(self):
            eps = EPS
        super().__init__(num_features, 1, eps=eps, share=share, device=device,
                         dtype=dtype)
