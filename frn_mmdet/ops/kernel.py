"""Which kernel computes FRN: what is at hand, and what was asked for."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import cpu

VARIABLE = 'FRN_MMDET_KERNEL'
CHOICES = ('auto', 'plain', 'native')


class Kernel(NamedTuple):
    """What computes FRN on a device.

    Attributes:
        name (str): 'cpp', 'triton' or 'plain'.
        reason (str): Why it is plain PyTorch; else empty.
    """

    name: str
    reason: str = ''


ASKED_FOR = Kernel('plain', 'it was asked for')


@contextlib.contextmanager
def use_kernel(choice: str) -> Iterator[None]:
    """Choose the kernel for the calls inside (of every thread).

    The environment variable ``FRN_MMDET_KERNEL`` takes the same values and
    holds outside.

    Args:
        choice (str): 'auto', the device's own kernel if there is one;
            'plain', plain PyTorch; 'native', the device's own, an error
            where there is none.

    Raises:
        ValueError: If there is no such choice.
    """
    global _choice
    before, _choice = _choice, _checked(choice, 'use_kernel')
    try:
        yield
    finally:
        _choice = before


def kernel_for(device: torch.device | str) -> Kernel:
    """Return what :func:`frn_mmdet.frn` runs on a device.

    The first question about a CPU compiles its kernel.

    Raises:
        RuntimeError: If 'native' was chosen and there is no kernel for it.
    """
    return _kernel_for(torch.device(device).type)


def is_native(x: Tensor) -> bool:
    """Whether a kernel computes for ``x``; in haste, since every call asks."""
    return not exported() and _kernel_for(x.device.type).name != 'plain'


def exported() -> bool:
    """Whether the call leaves PyTorch, and so consists of what others know."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def _kernel_for(device_type: str) -> Kernel:
    if _choice == 'plain':
        return ASKED_FOR
    kernel = _native(device_type)
    if _choice == 'native' and kernel.name == 'plain':
        raise RuntimeError(f'{VARIABLE}: no native kernel for '
                           f'{device_type}: {kernel.reason}')
    return kernel


@torch.compiler.assume_constant_result
def _native(device_type: str) -> Kernel:
    if device_type not in _natives:
        _natives[device_type] = _load(device_type)
    return _natives[device_type]


def _load(device_type: str) -> Kernel:
    if device_type == 'cpu':
        reason = cpu.load()
        return Kernel('plain', reason) if reason else Kernel('cpp')
    if device_type != 'cuda':
        return Kernel('plain', f'there is none for {device_type}')
    try:
        from . import cuda  # noqa: F401  (here: Triton takes a second)
    except ImportError as error:
        return Kernel('plain', f'Triton cannot be imported ({error})')
    return Kernel('triton')


def _checked(choice: str, who: str) -> str:
    if choice not in CHOICES:
        raise ValueError(
            f'{who}: {choice!r}; choose one of {", ".join(CHOICES)}')
    return choice


_natives: dict[str, Kernel] = {}
_choice = _checked(os.environ.get(VARIABLE, 'auto'), VARIABLE)
