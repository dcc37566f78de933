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
