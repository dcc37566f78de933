"""The paper's equations in plain PyTorch: what every kernel must equal."""

import torch
from torch import Tensor


def frn_definition(x: Tensor,
                   weight: Tensor,
                   bias: Tensor,
                   tau: Tensor | None = None,
                   eps: float | Tensor = 1e-6,
                   mean: Tensor | None = None,
                   share: float = 1.) -> Tensor:
    """Equations (1) to (3) of Singh and Krishnan, section 3.

    Differentiable to any order by PyTorch itself, which makes it the path
    for double backward, export and tracing. Arguments, shapes and result are
    those of :func:`frn_mmdet.frn`.
    """
    dtype = compute_dtype(x)
    dims = spatial_dims(x)
    x_wide = x.to(dtype)
    if mean is not None:
        x_wide = x_wide - per_channel(mean, x)
    # Cast, then square: a half-precision square overflows from |x| = 256.
    nu2 = x_wide.square().mean(dims, keepdim=True)
    x_hat = x_wide * (nu2 * share + per_channel(eps, x)).rsqrt()
    y = x_hat * per_channel(weight, x) + per_channel(bias, x)
    if tau is not None:
        y = threshold(y, per_channel(tau, x))
    return y.to(x.dtype)


def threshold(y: Tensor, tau: Tensor) -> Tensor:
    """Equation (3), ``max(y, tau)``, with a tie going to ``y``.

    ``torch.maximum`` would split the gradient of a tie in halves. Ties are
    common: with a zero-initialised gamma every position of a map is one.
    Backward keeps the comparison (one byte an element), not ``y``.
    """
    return torch.where(y < tau, tau, y)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of statistics and arithmetic: float32 for half types."""
    return torch.float32 if x.dtype.itemsize < 4 else x.dtype


def spatial_dims(x: Tensor) -> tuple[int, ...]:
    """The dimensions after (N, C)."""
    return tuple(range(2, x.dim()))


def per_channel(value: float | Tensor,
                x: Tensor) -> float | Tensor:
    """``value`` of shape (C,) or (1,), shaped to broadcast against ``x``.

    A float is returned as it is. A tensor is also cast to the dtype the
    computation runs in.
    """
    if not isinstance(value, Tensor):
        return value
    shape = (1, -1) + (1, ) * (x.dim() - 2)
    return value.to(compute_dtype(x)).view(shape)
