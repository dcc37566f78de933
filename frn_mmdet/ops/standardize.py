"""Weight standardization: each filter minus its mean, over its deviation."""

import torch
from torch import Tensor

from .definition import standardize_definition
from .kernel import is_native

KERNEL = torch.ops.frn_mmdet.standardize.default


def standardize(weight: Tensor, eps: float = 1e-5) -> Tensor:
    r"""``(w - mean) / (std + eps)`` of each filter.

    Qiao et al., *Micro-Batch Training with Batch-Channel Normalization and
    Weight Standardization* (2019), equation (2), with eps and the unbiased
    deviation as in mmcv (``conv_ws_2d``) and the authors' code. A CPU has a
    kernel for it; other devices take PyTorch's own operations.

    Args:
        weight (Tensor): Shape (filters, \*filter), any float dtype;
            computed in float32 for half types.
        eps (float): Added to the deviation. Defaults to 1e-5.

    Returns:
        Tensor: Shape and dtype of ``weight``.
    """
    if weight.is_cpu and is_native(weight):
        return KERNEL(weight, eps)
    return standardize_definition(weight, eps)
