"""Filter Response Normalization as a layer."""

import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from ..ops import frn
from ..ops.definition import EPS
from ..registry import MODELS
from .arguments import check_count, check_eps, check_flag
from .fx import Proxy, one_call
from .mmcv_eps import eps_was_given
from .reference import Reference

EPS_L = 1e-4  # section 3.1, initial value of the learnable part


@ROOT_MODELS.register_module()  # FRN, once the plugin is imported
@MODELS.register_module()  # frn_mmdet.FRN, which imports it
class FRN(Reference, nn.GroupNorm):
    r"""Filter Response Normalization, with its TLU fused on request.

    Singh and Krishnan, *Filter Response Normalization Layer* (CVPR 2020),
    section 3. The same computation in training and in test, no running
    state, no dependence on the other images of the batch.

    The base class says what it is to mmengine and mmcv, whose lists of norm
    layers are closed: ``norm_decay_mult`` and ``is_norm`` know a GroupNorm,
    while BN folding, SyncBN conversion and ``norm_eval`` leave it alone.
    Indeed it is GroupNorm of one channel a group, with the uncentred second
    moment in place of the variance.

    With ``share`` it is FRN of a map that is first standardized, and may go
    on from a BatchNorm: see :class:`.reference.Reference`, where m is 0 and
    v the mean square. For a small share this is FRN with a larger eps.

    Args:
        num_features (int): Channels C.
        eps (float): Added to the mean square, 0 or more. Defaults to 1e-6.
        learnable_eps (bool): Add ``|eps_l|``, one learnt number for the
            layer, initially 1e-4. Wanted where maps may be 1x1: there
            equation (1) is a sign function without gradient, which a larger
            eps softens. Defaults to False.
        tlu (bool): Apply the TLU, with one threshold per channel. Defaults
            to False: most mmcv modules place an activation themselves, and a
            ReLU behind a TLU stops the threshold from learning. The switch
            (``model.norm_cfg``) sets it where an activation follows.
        share (float, optional): 0 to 1: have reference statistics, the
            buffers ``ref_mean`` (initially 0) and ``ref_var`` (1, the eps of
            a BatchNorm included). Saved with them, as ``ref_share``, and
            what a state dict says wins: one without them brings plain FRN.
            Defaults to None, the paper's layer.
        device (torch.device, optional): Of the parameters and buffers.
        dtype (torch.dtype, optional): Likewise.

    Attributes:
        share (float): Of the mean square, 1 for plain FRN.

    Shape:
        (N, C, \\*spatial), 1 to 3 spatial dimensions, N may be 0.

    Raises:
        ConfigError: If an argument is out of its range.
        ValueError: At call, if the input has another rank, other channels or
            no float dtype.
    """

    # mmcv names layers by it: frn1, frn2, ... and their state-dict keys.
    _abbr_ = 'frn'

    def __init__(self,
                 num_features: int,
                 eps: float = EPS,
                 learnable_eps: bool = False,
                 tlu: bool = False,
                 share: float | None = None,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        if not eps_was_given(self):
            eps = EPS
        check_count('FRN', 'num_features', num_features)
        check_eps('FRN', eps)
        check_flag('FRN', 'learnable_eps', learnable_eps)
        check_flag('FRN', 'tlu', tlu)
        super().__init__(num_features, num_features, eps=eps, device=device,
                         dtype=dtype)
        self.num_features = num_features
        self.register_parameter(
            'eps_l',
            nn.Parameter(self.weight.detach().new_full((1, ), EPS_L))
            if learnable_eps else None)
        self.register_parameter('tau', None)
        self.init_reference(share)
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
        if isinstance(x, Proxy):
            return one_call(self, x)
        own = self._parameters
        try:  # attributes take as long as the kernel of a small map
            weight, bias, tau, eps_l = (
                own['weight'], own['bias'], own['tau'], own['eps_l'])
        except KeyError:  # of a replica, or with a parametrization
            weight, bias, tau, eps_l = (
                self.weight, self.bias, self.tau, self.eps_l)
        eps = self.eps
        if eps_l is not None:
            eps = eps + eps_l.abs()
        mean = self._buffers['ref_mean']
        if mean is None:
            return frn(x, weight, bias, tau, eps)
        # The docstring's equation, all that divides multiplied by ref_var.
        return frn(x, weight, bias, tau, 1 - self.share + self.share * eps,
                   mean, self._buffers['ref_var'], self.share)

    def extra_repr(self) -> str:
        """The arguments, for ``print(model)``."""
        text = f'{self.num_features}, eps={self.eps}'
        if self.eps_l is not None:
            text += ', learnable_eps=True'
        if self.tau is not None:
            text += ', tlu=True'
        if self.ref_mean is not None:
            text += f', share={self.share:g}'
        return text
