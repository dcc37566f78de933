"""Which kernel computes FRN: what is at hand, and what was asked for."""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import cpu
from .definition import exported

VARIABLE = 'FRN_MMDET_KERNEL'
CHOICES = ('auto', 'plain', 'native')


@dataclass(eq=False)  # an equal one around it is another
class _Chosen:
    thread: int
    choice: str


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
    """Choose the kernel for the calls inside.

    A thread that chooses is not disturbed by another that chooses, too. One
    that does not, such as those in which autograd computes again what a
    checkpoint left out, follows the last that did. The environment variable
    ``FRN_MMDET_KERNEL`` takes the same values and holds outside.

    Args:
        choice (str): 'auto', the device's own kernel if there is one;
            'plain', plain PyTorch; 'native', the device's own, an error
            where there is none.

    Raises:
        ValueError: If there is no such choice.
    """
    entry = _Chosen(_thread(), _checked(choice, 'use_kernel'))
    _chosen.append(entry)
    try:
        yield
    finally:
        _chosen.remove(entry)


def kernel_for(device: torch.device | str) -> Kernel:
    """Return what :func:`frn_mmdet.frn` runs on a device.

    The first question about a CPU compiles its kernel.

    Raises:
        RuntimeError: If 'native' was chosen and there is no kernel for it.
    """
    return _kernel_for(torch.device(device).type)


def is_native(x: Tensor) -> bool:
    """Whether a kernel computes for ``x``; in haste, since every call asks."""
    return (not by_definition()
            and _kernel_for(x.device.type).name != 'plain')


def by_definition() -> bool:
    """Whether the call is to consist of PyTorch's own operators.

    Because it leaves PyTorch, for those who know no others (export, tracing),
    or because PyTorch transforms it: ``torch.func`` and forward-mode AD do to
    the equations, to any order, what they would have to be taught to do to a
    kernel. For these two there is no public question; the first is that of
    PyTorch's own ``autograd.Function``.
    """
    return (exported() or torch._C._are_functorch_transforms_active()
            or forward_ad._current_level >= 0)


def _kernel_for(device_type: str) -> Kernel:
    choice = _choice() if _chosen else _default
    if choice == 'plain':
        return ASKED_FOR
    kernel = _native(device_type)
    if choice == 'native' and kernel.name == 'plain':
        raise RuntimeError(f'{VARIABLE}: no native kernel for '
                           f'{device_type}: {kernel.reason}')
    return kernel


def _choice() -> str:
    """What this thread asked for last; if nothing, what any thread did."""
    chosen = _chosen.copy()
    thread = _thread()
    mine = [entry.choice for entry in chosen if entry.thread == thread]
    return (mine or [entry.choice for entry in chosen] or [_default])[-1]


@torch.compiler.assume_constant_result  # it cannot trace the question
def _thread() -> int:
    return threading.get_ident()


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
        # Here, since Triton takes a second.
        from . import cuda  # noqa: F401
    except Exception as error:  # whatever is wrong with an installation
        return Kernel('plain', f'Triton cannot be imported ({error})')
    return Kernel('triton')


def _checked(choice: str, who: str) -> str:
    if choice not in CHOICES:
        raise ValueError(
            f'{who}: {choice!r}; choose one of {", ".join(CHOICES)}')
    return choice


_natives: dict[str, Kernel] = {}
_chosen: list[_Chosen] = []  # the last one last
_default = _checked(os.environ.get(VARIABLE) or 'auto', VARIABLE)
