"""The TLU alone, for where FRN does not precede it."""

import torch
from torch import Tensor

from .check import check_dtype, check_parameter
from .definition import column, threshold
from .kernel import is_native

KERNEL = torch.ops.frn_mmdet.tlu.default


def tlu(x: Tensor, tau: Tensor) -> Tensor:
    r"""Equation (3), ``max(x, tau)``, a tie going to ``x``.

    Singh and Krishnan, section 3. A kernel keeps one bit an element for
    backward, plain PyTorch a byte.

    Args:
        x (Tensor): Shape (N, C, \\*spatial) with 0 to 3 spatial dimensions,
            float16, bfloat16, float32 or float64.
        tau (Tensor): Shape (C,), or (1,) for one threshold.

    Returns:
        Tensor: Shape and dtype of ``x``.

    Raises:
        ValueError: If ``tau`` does not fit ``x``, or either is not float.
    """
    if not 2 <= x.dim() <= 5 or tau.shape not in ((1, ), (x.shape[1], )):
        raise ValueError(
            f'TLU has {tau.numel()} thresholds, but the input has shape '
            f'{tuple(x.shape)}; expected (N, C, *spatial) with '
            f'C = {tau.numel()} and up to 3 spatial dimensions')
    check_dtype('TLU input', x)
    check_parameter('TLU tau', tau, x)
    tau = tau.to(x.dtype)
    if is_native(x):
        return KERNEL(x, tau.expand(x.shape[1]))[0]
    return threshold(x, column(tau, x))
