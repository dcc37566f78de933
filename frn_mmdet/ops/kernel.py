"""Which kernel computes FRN: what is at hand, and what was asked for."""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..torch_private import forward_mode_is_active, functorch_is_active
from . import cpu
from .definition import exported

VARIABLE = 'FRN_MMDET_KERNEL'
CHOICES = ('auto', 'plain', 'native', 'python')


@dataclass(eq=False)  # an equal one around it is another
class _Chosen:
    thread: int
    choice: str


class Kernel(NamedTuple):
    """What computes FRN on a device.

    Attributes:
        name (str): 'cpp', 'triton' or 'plain'.
        reason (str): Why it is plain PyTorch, or Python that launches it;
            else empty.
        host (str): What calls it, or on a GPU launches it: 'cpp' or
            'python'. The results are the same.
    """

    name: str
    reason: str = ''
    host: str = 'python'


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
            where there is none; 'python', as 'auto', but on a GPU launched
            from Python.

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
    choice = _choice() if _chosen else _default
    kernel = _kernel(torch.device(device).type, choice)
    if kernel.name != 'triton':
        return kernel
    reason = ASKED_FOR.reason if choice == 'python' else _host.why_python()
    return Kernel('triton', reason, 'python' if reason else 'cpp')


def is_native(x: Tensor) -> bool:
    """Whether a kernel computes for ``x``; fast, since every call asks."""
    if by_definition():
        return False
    return _is_native(x.device.type, _choice() if _chosen else _default)


def by_definition() -> bool:
    """Whether the call is to consist of PyTorch's own operators.

    Because it leaves PyTorch, for those who know no others (export, tracing),
    or because PyTorch transforms it: ``torch.func`` and forward-mode AD do to
    the equations, to any order, what they would have to be taught to do to a
    kernel.
    """
    return exported() or functorch_is_active() or forward_mode_is_active()


@torch.compiler.assume_constant_result
def _is_native(device_type: str, choice: str) -> bool:
    """The same; and see to who launches a GPU's kernel."""
    name = _kernel(device_type, choice).name
    if name == 'triton':
        _host.follow(choice != 'python')
    return name != 'plain'


def _kernel(device_type: str, choice: str) -> Kernel:
    if choice == 'plain':
        return ASKED_FOR
    kernel = _natives.get(device_type) or _load(device_type)
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


def _load(device_type: str) -> Kernel:
    _natives[device_type] = kernel = _loaded(device_type)
    return kernel


def _loaded(device_type: str) -> Kernel:
    if device_type == 'cpu':
        reason = cpu.load()
        return Kernel('plain', reason) if reason else Kernel('cpp', '', 'cpp')
    if device_type != 'cuda':
        return Kernel('plain', f'there is none for {device_type}')
    global _host
    try:
        # Here, since Triton takes a second.
        from . import cuda_grouped, cuda_host  # noqa: F401
    except Exception as error:  # whatever is wrong with an installation
        return Kernel('plain', f'Triton cannot be imported ({error})')
    _host = cuda_host
    return Kernel('triton')


def _checked(choice: str, who: str) -> str:
    if choice not in CHOICES:
        raise ValueError(
            f'{who}: {choice!r}; choose one of {", ".join(CHOICES)}')
    return choice


_natives: dict[str, Kernel] = {}
_host: ModuleType | None = None  # cuda_host, once a GPU's kernel was loaded
_chosen: list[_Chosen] = []  # the last one last
_default = _checked(os.environ.get(VARIABLE) or 'auto', VARIABLE)
