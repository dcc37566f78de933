"""Filter Response Normalization as a layer."""


import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from ..ops import frn
from ..registry import MODELS
from .mmcv_eps import eps_was_given

EPS = 1e-6  # section 3.1
EPS_L = 1e-4  # section 3.1, initial value of the learnable part


@ROOT_MODELS.register_module()  # FRN, once the plugin is imported
@MODELS.register_module()  # frn_mmdet.FRN, which imports it
class FRN(nn.GroupNorm):
    r"""Filter Response Normalization, with its TLU fused on request.

    Singh and Krishnan, *Filter Response Normalization Layer* (CVPR 2020),
    section 3. The same computation in training and in test, no running
    state, no dependence on the other images of the batch.

    The base class says what it is to mmengine and mmcv, whose lists of norm
    layers are closed: ``norm_decay_mult`` and ``is_norm`` know a GroupNorm,
    while BN folding, SyncBN conversion and ``norm_eval`` leave it alone.
    Indeed it is GroupNorm of one channel a group, with the uncentred second
    moment in place of the variance.

    Args:
        num_features (int): Channels C.
        eps (float): Added to the mean square. Defaults to 1e-6.
        learnable_eps (bool): Add ``|eps_l|``, one learnt number for the
            layer, initially 1e-4. Wanted where maps may be 1x1: there
            equation (1) is a sign function without gradient, which a larger
            eps softens. Defaults to False.
        tlu (bool): Apply the TLU, with one threshold per channel. Defaults
            to False: most mmcv modules place an activation themselves, and a
            ReLU behind a TLU stops the threshold from learning. The switch
            (``model.norm_cfg``) sets it where an activation follows.

    Shape:
        (N, C, \\*spatial), 1 to 3 spatial dimensions, N may be 0.

    Raises:
        ValueError: At call, if the input has another rank or other channels.
    """

    # mmcv names layers by it: frn1, frn2, ... and their state-dict keys.
    _abbr_ = 'frn'

    def __init__(self,
                 num_features: int,
                 eps: float = EPS,
                 learnable_eps: bool = False,
                 tlu: bool = False) -> None:
        if not eps_was_given(self):
            eps = EPS
        super().__init__(num_features, num_features, eps=eps)
        self.num_features = num_features
        self.register_parameter(
            'eps_l',
            nn.Parameter(torch.full((1, ), EPS_L)) if learnable_eps else None)
        self.register_parameter('tau', None)
        if tlu:
            self.add_tlu()

    def add_tlu(self) -> None:
        """Give the layer a TLU, with thresholds of 0."""
        self.tau = nn.Parameter(
            torch.zeros_like(self.weight),
            requires_grad=self.weight.requires_grad)

    def reset_parameters(self) -> None:
        """Set the initial values (also after building on ``meta``)."""
        super().reset_parameters()
        # GroupNorm's __init__ calls this before the two are there.
        if self._parameters.get('eps_l') is not None:
            nn.init.constant_(self.eps_l, EPS_L)
        if self._parameters.get('tau') is not None:
            nn.init.zeros_(self.tau)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, and threshold if the layer has a TLU."""
        return frn(x, self.weight, self.bias, self.tau, self._eps())

    def _eps(self) -> float | Tensor:
        if self.eps_l is None:
            return self.eps
        return self.eps + self.eps_l.abs()

    def extra_repr(self) -> str:
        """The arguments, for ``print(model)``."""
        text = f'{self.num_features}, eps={self.eps}'
        if self.eps_l is not None:
            text += ', learnable_eps=True'
        if self.tau is not None:
            text += ', tlu=True'
        return text
