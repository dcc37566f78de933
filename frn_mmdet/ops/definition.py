"""The papers' equations in plain PyTorch: what every kernel must equal."""

import torch
from torch import Tensor

EPS = 1e-6  # Singh and Krishnan, section 3.1


def frn_definition(x: Tensor,
                   weight: Tensor,
                   bias: Tensor,
                   tau: Tensor | None = None,
                   eps: float | Tensor = EPS,
                   mean: Tensor | None = None,
                   share: float = 1.) -> Tensor:
    """Equations (1) to (3) of Singh and Krishnan, section 3.

    Differentiable to any order by PyTorch itself, which makes it the path
    for double backward, export and tracing. Arguments, shapes and result are
    those of :func:`frn_mmdet.frn`.
    """
    dtype = compute_dtype(x)
    x_wide = x.to(dtype)
    if mean is not None:
        x_wide = x_wide - per_channel(mean, x)
    # Cast, then square: a half-precision square overflows from |x| = 256.
    nu2 = mean_square(x_wide)
    inv = (nu2 * share + per_channel(eps, x)).rsqrt()
    gamma = per_channel(weight, x)
    # The paper's order, but where each product is a pass over the map.
    y = x_wide * (inv * gamma) if handed_over() else x_wide * inv * gamma
    y = y + per_channel(bias, x)
    if tau is not None:
        y = threshold(y, per_channel(tau, x))
    return y.to(x.dtype)


def standardize_definition(weight: Tensor, eps: float) -> Tensor:
    """Equation (2) of Qiao et al.: see :func:`.standardize.standardize`."""
    rows = weight.to(compute_dtype(weight)).flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    # A norm, since its gradient at 0 is 0, and that of a root is not.
    std = torch.linalg.vector_norm(rows, dim=1, keepdim=True) / (
        rows.shape[1] - 1)**.5
    return (rows / (std + eps)).view_as(weight).to(weight.dtype)


def threshold(y: Tensor, tau: Tensor) -> Tensor:
    """Equation (3), ``max(y, tau)``, with a tie going to ``y``.

    ``torch.maximum`` would split the gradient of a tie in halves. Ties are
    common: with a zero-initialised gamma every position of a map is one.
    Backward keeps the comparison (one byte an element), not ``y``. The result
    is NaN where either is, as that of ``torch.maximum``; to add -0 changes
    no number.

    Where it leaves PyTorch without its gradient it is ``torch.maximum``: to
    other runtimes that is one operation, and the above three.
    """
    if handed_over():
        return torch.maximum(y, tau)
    nan = torch.where(tau != tau, tau, -0.).detach()
    return torch.where(y < tau, tau, y + nan)


def mean_square(x: Tensor) -> Tensor:
    """The mean square of each row, shape (N, C, 1, ...).

    Of a row without elements it is 1, where 0 / 0 would make NaN of the
    gradients of parameters: any number will do for a map of none.
    """
    dims = spatial_dims(x)
    if not exported() and 0 in x.shape[2:]:
        return x.sum(dims, keepdim=True) + 1
    # Not square(): ONNX has only Pow for it.
    return (x * x).mean(dims, keepdim=True)


def exported() -> bool:
    """Whether the call leaves PyTorch: then no size is to be asked for."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def handed_over() -> bool:
    """Whether another runtime takes over, which will ask for no gradient.

    Not a trace, which is checked with gradients and without, and has to be
    one graph.
    """
    return (torch.compiler.is_exporting() and not torch.is_grad_enabled()
            and not torch.jit.is_tracing())


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
    return column(value.to(compute_dtype(x)), x)


def column(value: Tensor, x: Tensor) -> Tensor:
    """``value`` of shape (C,) or (1,), shaped to broadcast against ``x``."""
    channels = -1 if exported() else len(value)  # of 0, -1 is no size
    return value.view(1, channels, *[1] * (x.dim() - 2))
