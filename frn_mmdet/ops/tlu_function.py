"""The TLU alone, for where FRN does not precede it."""

import torch
from torch import Tensor

from .check import check_tlu
from .definition import column, threshold
from .kernel import is_native

KERNEL = torch.ops.frn_mmdet.tlu.default


def tlu(x: Tensor, tau: Tensor) -> Tensor:
    r"""Equation (3), ``max(x, tau)``, a tie going to ``x``.

    Singh and Krishnan, section 3. A kernel keeps one bit an element for
    backward, plain PyTorch a byte. ``torch.compile`` gets PyTorch's operators.

    Args:
        x (Tensor): Shape (N, C, \\*spatial) with 0 to 3 spatial dimensions,
            float16, bfloat16, float32 or float64.
        tau (Tensor): Shape (C,), or (1,) for one threshold.

    Returns:
        Tensor: Shape and dtype of ``x``.

    Raises:
        ValueError: If ``tau`` does not fit ``x``, or either is not float.
    """
    # What compiles makes one pass of it and the add before it.
    if is_native(x) and not torch.compiler.is_compiling():
        try:
            return KERNEL(x, tau)[0]
        except RuntimeError:  # the kernel checks, and does not say what for
            check_tlu(x, tau)
            raise
    check_tlu(x, tau)
    return threshold(x, column(tau.to(x.dtype), x))
