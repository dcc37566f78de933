"""The FRN operation, as every layer calls it."""

import torch
from torch import Tensor

from .check import check_frn
from .definition import EPS, frn_definition
from .kernel import by_definition, is_native
from .plain import PlainFRN

KERNEL = torch.ops.frn_mmdet.frn.default


def frn(x: Tensor,
        weight: Tensor,
        bias: Tensor,
        tau: Tensor | None = None,
        eps: float | Tensor = EPS,
        mean: Tensor | None = None,
        var: Tensor | None = None,
        share: float = 1.) -> Tensor:
    r"""Filter Response Normalization, with the TLU if ``tau`` is given.

    Singh and Krishnan, *Filter Response Normalization Layer* (CVPR 2020),
    equations (1) to (3), on each channel of each image alone::

        nu2 = mean(x ** 2)
        y = weight * x / sqrt(nu2 + eps) + bias
        z = max(y, tau)

    With ``mean``, ``var`` and ``share`` it is FRN that starts from other
    statistics (:class:`frn_mmdet.FRN`): ``x - mean`` stands for ``x`` in all
    of it, and ``share * nu2 + eps * var`` for ``nu2 + eps``.

    Statistics and arithmetic are float32 for half types. The backward is
    exact (section 3.2; a tie of y and tau goes to y) and keeps the input and
    one number per row.

    Args:
        x (Tensor): Shape (N, C, \\*spatial) with 1 to 3 spatial dimensions,
            float16, bfloat16, float32 or float64. Any size may be 0. Its
            memory format is kept.
        weight (Tensor): gamma, shape (C,).
        bias (Tensor): beta, shape (C,).
        tau (Tensor, optional): Threshold of the TLU, shape (C,). None: no
            activation.
        eps (float or Tensor): Added to the mean square. A tensor has shape
            (1,) or (C,) and may be learnt. Defaults to 1e-6.
        mean (Tensor, optional): Subtracted first, shape (C,). Given, not
            learnt. None: nothing is subtracted, as in the paper.
        var (Tensor, optional): What eps counts in, shape (C,). Given, not
            learnt. None: in 1, as in the paper.
        share (float): Of the mean square in what divides, 0 or more.
            Defaults to 1, the paper's.

    Returns:
        Tensor: Shape and dtype of ``x``.

    Raises:
        ValueError: If ``x`` or a parameter has another shape or dtype, a
            parameter is on another device than ``x``, or ``mean`` or ``var``
            requires a gradient.
    """
    if is_native(x):
        try:
            return _by_kernel(x, weight, bias, tau, eps, mean, var, share)
        except (RuntimeError, ValueError):
            check_frn(x, weight, bias, tau, eps, mean, var)
            raise  # it was something else
    check_frn(x, weight, bias, tau, eps, mean, var)
    if var is not None:
        eps = eps * var
    if by_definition():
        return frn_definition(x, weight, bias, tau, eps, mean, share)
    return PlainFRN.apply(x, weight, bias, tau, eps, mean, share)


def _by_kernel(x, weight, bias, tau, eps, mean, var, share) -> Tensor:
    """The same; the kernel checks, since Python would take as long again."""
    if var is not None and (var.requires_grad or var.shape != weight.shape):
        raise ValueError('var')  # to a kernel it is eps
    if isinstance(eps, Tensor):
        var, eps = eps if var is None else eps * var, 1.
    return KERNEL(x, weight, bias, tau, var, eps, mean, share)[0]
