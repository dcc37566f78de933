"""Who launches the GPU's kernels: C++, or Python where C++ cannot.

Triton compiles a kernel and launches it from Python, which takes the CPU
longer than a small map takes the GPU. ``host.cpp`` launches what Triton
compiled. For tensors that are the first of their kind Python launches; what
it launched is written down here, for C++ to do the same from then on.

C++ has to know how Triton hands parameters over, which no document says. So
a kernel whose code asks for other parameters is left to Python, and the
results of a kernel's first launch by C++ are compared with Python's, bit for
bit: where they differ, Python launches everything from then on.
"""

import logging
import re
import threading
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..torch_private import current_raw_stream
from . import build, library

try:
    from triton.knobs import runtime
except ImportError:  # before Triton 3.4
    from triton.compiler import CompiledKernel as runtime

OPS = torch.ops.frn_mmdet
REPORT = ('Please report it, with what `python -m frn_mmdet check_gpu` '
          'prints.')
# How launch.h numbers the kinds of arguments, and what PTX calls them.
KINDS = {'pointer': 0, 'float': 1, 'integer': 2}
PTX = {'pointer': 'u64', 'float': 'f32', 'integer': 'u32'}
# What a launch would have to do more for, and what it is without.
DEMANDS = dict(global_scratch_size=0, profile_scratch_size=0, num_ctas=1,
               launch_cooperative_grid=False, launch_pdl=False)


class Launched(NamedTuple):
    """A launch as Python made it.

    Attributes:
        compiled (triton.compiler.CompiledKernel): What Triton launched.
        grid (tuple): Programs along one axis or two.
        arguments (tuple): Of the kernel, but for its constants.
    """

    compiled: object
    grid: tuple
    arguments: tuple


class _Recorder(threading.local):
    launched: list[Launched] | None = None
    shared = 0, 0


class _Unknown(Exception):
    """What C++ does not know how to launch."""


def register(kernels: dict) -> None:
    """Make functions the GPU's kernels, or what C++ falls back on.

    Args:
        kernels (dict): Of operators' names to functions.
    """
    global _reason
    for name, kernel in kernels.items():
        torch.library.impl(library.python_of(name), 'CUDA', kernel)
    try:
        build.load('host', 'AutogradCUDA')
        _reason = (OPS.why_no_driver() if torch.version.cuda else
                   "the GPU is not NVIDIA's")
    except Exception as error:  # whatever is wrong with a compiler
        _reason = str(error) or type(error).__name__
        for name, kernel in kernels.items():
            torch.library.impl(name, 'CUDA', kernel)
    if _reason and torch.cuda.is_available():
        print_log('The GPU kernels of FRN are launched from Python, which '
                  f'takes longer: {_reason}', 'current')
    follow(True)


def why_python() -> str:
    """Return why C++ does not launch; empty if it does."""
    return _reason or (
        "Triton's launch hooks are set" if _is_watched() else '')


def follow(wanted: bool) -> None:
    """Have C++ launch if that is wanted and can be, else Python.

    For all threads, and for a backward pass what holds when it comes: the
    results are the same.
    """
    global _is_on
    on = wanted and not _reason and not _is_watched()
    if on is not _is_on:
        _is_on = on
        OPS.launch_in_cpp(on)


def _is_watched() -> bool:
    """Whether Triton would tell somebody of a launch, such as its profiler."""
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(getattr(enter, 'calls', enter)
                or getattr(leave, 'calls', leave))


def launch(kernel, grid: tuple, *arguments, **constants) -> None:
    """Launch a kernel from Python.

    Triton's own way to a kernel that it has compiled is five times as long as
    the launch; so it is found again by what Triton compiles it for.
    """
    key = (kernel, torch.cuda.current_device() if arguments[0].is_cuda else -1,
           *[_specialized(value) for value in arguments], *constants.values())
    compiled = None if _is_watched() else _compiled.get(key)
    if compiled is None:
        compiled = kernel[grid](*arguments, **constants)
        if hasattr(compiled, 'run'):  # not on the interpreter
            _compiled[key] = compiled
    else:
        x, y = (*grid, 1)[:2]
        try:
            compiled.run(
                x, y, 1, current_raw_stream(key[1]),
                compiled.function, compiled.packed_metadata, None, None, None,
                *arguments, *[constants[parameter.name]
                              for parameter in kernel.params
                              if parameter.is_constexpr])
        except TypeError:  # a Triton that launches otherwise
            kernel[grid](*arguments, **constants)
    if _recorder.launched is not None:
        _recorder.launched.append(Launched(compiled, grid, arguments))


def _specialized(value: Tensor | float | int) -> object:
    """What of an argument Triton compiles a kernel for."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    return float if isinstance(value, float) else (
        value == 1, value % 16 == 0, value.bit_length() > 31)


def share(words: int = 0, sums: int = 0) -> None:
    """Say how many elements of memory the kernels of an operator share."""
    _recorder.shared = words, sums


def _record(on: bool) -> list[int]:
    """Note what this thread launches; at the end return it.

    Returns:
        list[int]: A plan as launch.h reads it; none if there cannot be one.
    """
    launched, _recorder.launched = _recorder.launched, [] if on else None
    # A captured graph must not contain the comparison.
    if on or not launched or torch.cuda.is_current_stream_capturing():
        return []
    plan = [*_recorder.shared, len(launched)]
    for one in launched:
        try:
            plan += _written(one)
        except _Unknown as error:
            _give_way(f'{one.compiled.name} {error}')
            return []
        _kept[one.compiled.function] = one.compiled
    return plan


def _written(one: Launched) -> list[int]:
    """Write a launch down in numbers.

    Raises:
        _Unknown: If C++ would launch something else.
    """
    compiled, metadata = one.compiled, one.compiled.metadata
    for name, right in DEMANDS.items():
        if (value := getattr(metadata, name, right)) != right:
            raise _Unknown(f'has {name} {value}')
    types = list(compiled.src.signature.values())
    written, passed = [], []
    for value, type_ in zip(one.arguments, types, strict=False):
        kind = _kind(value)
        written += [KINDS[kind], type_ != 'constexpr',
                    value if kind == 'integer' else 0]
        if type_ != 'constexpr':
            passed.append(kind)
    x, y = (*one.grid, 1)[:2]
    return [compiled.function, x, y, 32 * metadata.num_warps, metadata.shared,
            _scratch(compiled, passed), len(one.arguments), *written]


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return 'pointer'
    return 'float' if isinstance(value, float) else 'integer'


def _scratch(compiled, passed: list[str]) -> int:
    """Return how many pointers the code takes behind its parameters.

    Triton appends them, to memory that these kernels do not use.

    Raises:
        _Unknown: If the code takes other parameters.
    """
    head = re.search(r'\.entry\s+\w+\s*\((.*?)\)', compiled.asm['ptx'],
                     re.DOTALL)
    takes = re.findall(r'\.param\s+\.(\w+)', head[1]) if head else []
    scratch = len(takes) - len(passed)
    if takes != [PTX[k] for k in passed + ['pointer'] * scratch]:
        raise _Unknown(f'takes {takes} and is given {passed}')
    return scratch


def _agree(ours: list[Tensor], theirs: list[Tensor], plan: list[int],
           error: str) -> bool:
    """Whether C++ did what Python did; if not, Python launches from now on.

    A kernel is compared once: to look at a result waits for the GPU.
    """
    functions = frozenset(set(plan) & _kept.keys())
    if error:
        _give_way(error)
    elif functions not in _compared:
        if _are_same(ours, theirs):
            _compared.add(functions)
        else:
            names = ', '.join(sorted(_kept[f].name for f in functions))
            _give_way(f'results of {names} differ')
    return not _reason


def _are_same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether they are, bit for bit."""
    return all(torch.equal(_bits(a), _bits(b))
               for a, b in zip(ours, theirs, strict=True))


def _bits(tensor: Tensor) -> Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(integers[tensor.dtype.itemsize])


def _give_way(reason: str) -> None:
    global _reason
    _reason = f'C++ does not launch what Python launches: {reason}'
    follow(False)
    print_log(f'The GPU kernels of FRN are launched from Python from now on, '
              f'which takes longer. {_reason}. {REPORT}', 'current',
              logging.WARNING)


_reason = 'it is not loaded'
_is_on = False
_recorder = _Recorder()
_compiled: dict[tuple, object] = {}
_kept: dict[int, object] = {}  # the kernels C++ launches, or they would go
_compared: set[frozenset[int]] = set()
torch.library.define('frn_mmdet::record', '(bool on) -> int[]')
torch.library.impl('frn_mmdet::record', 'CompositeExplicitAutograd', _record)
torch.library.define(
    'frn_mmdet::agree',
    '(Tensor[] ours, Tensor[] theirs, int[] plan, str error) -> bool')
torch.library.impl('frn_mmdet::agree', 'CompositeExplicitAutograd',
                   lambda *arguments: _agree(*arguments))
