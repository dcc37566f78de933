"""Compiles ``cpu.cpp`` on first use, and loads it.

On first use and not at installation: so it fits the torch that runs, whatever
built the package, and nobody with a GPU waits for it. Not by
``torch.utils.cpp_extension.load``: that needs ninja and, once killed, leaves
a lock on which every later run waits for ever.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from mmengine.logging import print_log
from torch.utils import cpp_extension

from . import library  # noqa: F401  (declares what cpu.cpp implements)

SOURCE = Path(__file__).with_suffix('.cpp')
FLAGS = [
    '-std=c++20', '-O3', '-fopenmp', '-fPIC', '-shared',
    # Forward and backward must round alike, in every loop: see cpu.cpp.
    '-ffp-contract=off',
    # Nobody asks for the flags or errno of arithmetic, and with them no loop
    # that compares floats is vectorised.
    '-fno-trapping-math', '-fno-math-errno',
]
# What torch itself needs to run at this level (torch.backends.cpu), so that a
# cache shared by several machines is safe.
AVX2 = ['-mavx2', '-mfma', '-mf16c', '-DCPU_CAPABILITY=AVX2',
        '-DCPU_CAPABILITY_AVX2']


def load() -> str:
    """Register the CPU kernel, compiling it if need be.

    Returns:
        str: Why there is none; empty if all is well. It is also logged.
    """
    try:
        torch.ops.load_library(_library())
        return ''
    except (OSError, subprocess.CalledProcessError) as error:
        reason = _explain(error)
    print_log(f'FRN runs in plain PyTorch on the CPU: {reason}', 'current')
    return reason


def _library() -> Path:
    """Return the compiled file, from the cache if it is there."""
    command = _command()
    key = hashlib.sha256('\n'.join([
        *command, torch.__version__, platform.machine(),
        SOURCE.read_text()
    ]).encode()).hexdigest()[:16]
    folder = Path(
        os.environ.get('TORCH_EXTENSIONS_DIR')
        or cpp_extension.get_default_build_root()) / 'frn_mmdet'
    target = folder / f'cpu-{key}.so'
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{target}.lock'):
        if not target.exists():
            print_log(f'Compiling the CPU kernel of FRN, once, to {target}',
                      'current')
            _compile(command, target)
    return target


def _command() -> list[str]:
    compiler = os.environ.get('CXX', 'c++').split()
    if shutil.which(compiler[0]) is None:
        raise OSError(f'there is no C++ compiler ({compiler[0]})')
    level = torch.backends.cpu.get_cpu_capability()
    return [
        *compiler, *FLAGS, *(AVX2 if level.startswith('AVX') else []),
        *(f'-I{path}' for path in cpp_extension.include_paths()),
        f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}',
        str(SOURCE),
        *(f'-L{path}' for path in cpp_extension.library_paths()),
        '-ltorch_cpu', '-lc10',
    ]


def _compile(command: list[str], target: Path) -> None:
    """Write all of the file or nothing."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part = Path(folder) / target.name
        subprocess.run([*command, '-o', str(part)],
                       check=True, capture_output=True, text=True)
        part.replace(target)


def _explain(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        errors = [x for x in error.stderr.splitlines() if 'error' in x]
        return ('cpu.cpp does not compile here: '
                f'{(errors or [error.stderr.strip()])[0]}')
    return str(error)
