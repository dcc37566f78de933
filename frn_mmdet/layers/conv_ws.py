"""A convolution with standardized weights."""

from typing import Any, NoReturn

from torch import Tensor, nn

from ..ops.standardize import standardize
from ..registry import MODELS
from .fx import Proxy, one_call

NO_FOLDING = ('a norm cannot be folded into a convolution with standardized '
              'weights; call frn_mmdet.fold_ws(model) before')


@MODELS.register_module(name='ConvWS')
class ConvWS(nn.Conv2d):
    r"""``nn.Conv2d`` of ``(w - mean) / (std + eps)``, filter by filter.

    Weight standardization (Qiao et al. 2019), with the parameters and values
    of mmcv's ``ConvWS``, which has that name in the root registry. It takes
    the common part out of the filters, as a centred norm takes it out of the
    map, but looks at neither the batch nor the image. Each call standardizes
    the weight as it is then, and nothing is kept between calls.

    Args:
        *args: Those of ``nn.Conv2d``, also by keyword.
        eps (float): Added to the deviation. Defaults to 1e-5, mmcv's.

    Raises:
        ValueError: If a filter has one element, whose deviation is 0 / 0.
        RuntimeError: If a norm is folded into it, by ``fuse_conv_bn`` or by
            ``efficient_conv_bn_eval``.
    """

    def __init__(self, *args: Any, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.weight[0].numel() < 2:
            raise ValueError(
                f'ConvWS of {self.in_channels} channels in {self.groups} '
                'groups has filters of one element, which have no deviation')
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        if isinstance(x, Proxy):
            return one_call(self, x)
        return super()._conv_forward(x, self.standardized(), self.bias)

    def standardized(self) -> Tensor:
        """The weight that convolves, shape of ``weight``."""
        return standardize(self.weight, self.eps)

    def _conv_forward(self, *args: Any) -> NoReturn:
        # Called by efficient_conv_bn_eval (mmengine, mmcv), with a weight
        # that a norm has scaled; fuse_conv_bn sets a bias.
        raise RuntimeError(NO_FOLDING)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'bias' and isinstance(value, nn.Parameter) and (
                self._parameters.get(name, value) is None):
            raise RuntimeError(NO_FOLDING)
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """The arguments, for ``print(model)``."""
        return f'{super().extra_repr()}, ws=True'
