"""What the operations refuse, on any kernel: each is one sentence."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_dtype(name: str, value: Tensor) -> None:
    """Refuse what is not of a float dtype that every kernel knows.

    An integer map would come back truncated, threshold and all.

    Raises:
        ValueError: If it is of another dtype.
    """
    if value.dtype not in FLOATS:
        raise ValueError(f'{name} has dtype {value.dtype}, expected one of '
                         f'{", ".join(str(dtype) for dtype in FLOATS)}')


def check_parameter(name: str, value: Tensor, x: Tensor) -> None:
    """Refuse a parameter that cannot be computed with ``x``.

    A kernel would read memory of another device as its own.

    Raises:
        ValueError: If it is not float, or on another device.
    """
    check_dtype(name, value)
    if value.device != x.device:
        raise ValueError(f'{name} is on {value.device}, but the input is on '
                         f'{x.device}')


def check_frn(x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None,
              eps: float | Tensor, mean: Tensor | None,
              var: Tensor | None = None) -> None:
    """Refuse what :func:`frn_mmdet.frn` cannot compute.

    The kernels in C++ ask the same, and do not say what is wrong.

    Raises:
        ValueError: As that function does.
    """
    if not 3 <= x.dim() <= 5:
        raise ValueError(
            'FRN takes (N, C, *spatial) with 1 to 3 spatial dimensions, got '
            f'shape {tuple(x.shape)}')
    check_dtype('FRN input', x)
    channels = x.shape[1]
    for name, value in (('weight', weight), ('bias', bias), ('tau', tau),
                        ('mean', mean), ('var', var)):
        if value is None:
            continue
        if value.shape != (channels, ):
            raise ValueError(
                f'FRN {name} has shape {tuple(value.shape)}, but the input '
                f'has {channels} channels (shape {tuple(x.shape)})')
        check_parameter(f'FRN {name}', value, x)
        if value.requires_grad and name in ('mean', 'var'):
            raise ValueError(f'FRN {name} is given, not learnt: it must not '
                             'require a gradient')
    if isinstance(eps, Tensor):
        if eps.shape not in ((1, ), (channels, )):
            raise ValueError(
                f'FRN eps has shape {tuple(eps.shape)}, expected a float, '
                f'(1,) or ({channels},)')
        check_parameter('FRN eps', eps, x)


def check_tlu(x: Tensor, tau: Tensor) -> None:
    """Refuse what :func:`.tlu.tlu` cannot compute.

    Raises:
        ValueError: As that function does.
    """
    if not 2 <= x.dim() <= 5 or tau.shape not in ((1, ), (x.shape[1], )):
        raise ValueError(
            f'TLU has {tau.numel()} thresholds, but the input has shape '
            f'{tuple(x.shape)}; expected (N, C, *spatial) with '
            f'C = {tau.numel()} and up to 3 spatial dimensions')
    check_dtype('TLU input', x)
    check_parameter('TLU tau', tau, x)
