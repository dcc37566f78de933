"""Thresholded Linear Unit, as a layer of its own."""

import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from ..ops import tlu
from ..registry import MODELS
from .arguments import check_count
from .fx import Proxy, one_call


@ROOT_MODELS.register_module()  # TLU, once the plugin is imported
@MODELS.register_module()  # frn_mmdet.TLU, which imports it
class TLU(nn.GroupNorm):
    r"""``max(x, tau)`` with a learnt threshold per channel (equation 3).

    Singh and Krishnan, section 3. With ``tau`` 0, its initial value, this is
    ReLU. Where a norm precedes it directly, let :class:`FRN` apply it
    (``tlu=True``); this layer is for every other place, such as after a
    residual add.

    The base class says what its parameter is to mmengine, whose list of
    layers is closed: thresholds behind an add get ``norm_decay_mult`` as
    those in an :class:`FRN` do. It normalises nothing.

    Args:
        num_features (int): Channels C, or 1 for one threshold shared by all
            channels, as ``nn.PReLU`` has it. mmcv's ``ConvModule`` builds
            activations without telling them their channels, so there give
            ``act_cfg=dict(type='TLU', num_features=C)``. Defaults to 1.
        inplace (bool): Ignored: mmcv passes it to every activation, and
            backward needs no second copy of the input anyway.
        device (torch.device, optional): Of the parameters and buffers.
        dtype (torch.dtype, optional): Likewise.

    Shape:
        (N, C, \\*spatial) to the same shape and dtype.

    Raises:
        ConfigError: If there are no channels.
    """

    def __init__(self,
                 num_features: int = 1,
                 inplace: bool = False,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        check_count('TLU', 'num_features', num_features)
        super().__init__(1, num_features, affine=False)
        self.num_features = num_features
        self.tau = nn.Parameter(
            torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial value (also after building on ``meta``)."""
        if 'tau' in self._parameters:  # GroupNorm's __init__ calls this, too
            nn.init.zeros_(self.tau)

    def forward(self, x: Tensor) -> Tensor:
        """Clamp ``x`` from below.

        Raises:
            ValueError: If ``x`` has another number of channels, or no float
                dtype.
        """
        if isinstance(x, Proxy):
            return one_call(self, x)
        tau = self._parameters.get('tau')  # self.tau takes as long as a TLU
        return tlu(x, self.tau if tau is None else tau)

    def extra_repr(self) -> str:
        """The arguments, for ``print(model)``."""
        return f'{self.num_features}'
