"""The TLU alone, for where FRN does not precede it."""

import torch
from torch import Tensor

from .definition import threshold
from .kernel import is_native

KERNEL = torch.ops.frn_mmdet.tlu.default


def tlu(x: Tensor, tau: Tensor) -> Tensor:
    r"""Equation (3), ``max(x, tau)``, a tie going to ``x``.

    Singh and Krishnan, section 3. A kernel keeps one bit an element for
    backward, plain PyTorch a byte.

    Args:
        x (Tensor): Shape (N, C, \\*spatial) with 0 to 3 spatial dimensions,
            any float dtype.
        tau (Tensor): Shape (C,), or (1,) for one threshold.

    Returns:
        Tensor: Shape and dtype of ``x``.

    Raises:
        ValueError: If ``tau`` does not fit ``x``.
    """
    if not 2 <= x.dim() <= 5 or tau.shape not in ((1, ), (x.shape[1], )):
        raise ValueError(
            f'TLU has {tau.numel()} thresholds, but the input has shape '
            f'{tuple(x.shape)}; expected (N, C, *spatial) with '
            f'C = {tau.numel()} and up to 3 spatial dimensions')
    tau = tau.to(x.dtype)
    if is_native(x):
        return KERNEL(x, tau.expand(x.shape[1]))[0]
    return threshold(x, tau.view(1, -1, *[1] * (x.dim() - 2)))
