"""Compiles a C++ source of this folder on first use, and loads it.

On first use and not at installation: so it fits the torch that runs, whatever
built the package, and nobody with a GPU waits for it. Not by
``torch.utils.cpp_extension.load``: that needs ninja and, once killed, leaves
a lock on which every later run waits for ever.
"""

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from mmengine.logging import print_log

from ..torch_private import has_kernel
from .library import FRN

HEADERS = sorted(Path(__file__).parent.glob('*.h'))
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
PATIENCE = 900.  # seconds for a compiler, which takes half a minute


def load(name: str, key: str) -> None:
    """Load the library of a source, compiling it if need be.

    Args:
        name (str): Of the source, without its ending: 'cpu' or 'host'.
        key (str): For which it brings the operator ``frn``.

    Raises:
        Exception: Whatever is wrong with a compiler, a folder or the
            environment. It says so in a sentence.
    """
    path = library(name)
    again = 'delete it to have it compiled again'
    try:
        torch.ops.load_library(path)
    except OSError as error:  # else it would be compiled every time
        raise OSError(f'{path} cannot be loaded ({error}); {again}') from error
    if not has_kernel(FRN, key):
        raise OSError(f'{path} does not hold the kernel; {again}')


def library(name: str) -> Path:
    """Return the compiled file of a source, from the cache if it is there."""
    source = Path(__file__).with_name(f'{name}.cpp')
    command = _command(source)
    folder, stem = _folder(), f'{name}-{_key(source, command)}'
    if found := _cached(folder, stem):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f'{stem}.lock', timeout=PATIENCE):
        if found := _cached(folder, stem):
            return found
        print_log(f'Compiling {source.name} of FRN, once, to {folder}',
                  'current')
        return _compile(command, folder, stem)


def _command(source: Path) -> list[str]:
    level = torch.backends.cpu.get_cpu_capability()
    # Here, since it wants setuptools, which not every environment has.
    from torch.utils import cpp_extension
    return [
        *_compiler(), *FLAGS, *(AVX2 if level.startswith('AVX') else []),
        *(f'-I{path}' for path in cpp_extension.include_paths()),
        f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}',
        str(source),
        *(f'-L{path}' for path in cpp_extension.library_paths()),
        '-ltorch_cpu', '-lc10', '-ldl',
    ]


def _compiler() -> list[str]:
    """What ``CXX`` names: a program, whose arguments may follow it."""
    text = os.environ.get('CXX', '').strip() or 'c++'
    words = [text]  # a path may have spaces
    if shutil.which(text) is None:
        try:
            words = shlex.split(text) or words
        except ValueError as error:
            raise OSError(f'CXX is {text!r}: {error}') from error
    if shutil.which(words[0]) is None:
        raise OSError(f'there is no C++ compiler ({words[0]})')
    return words


def _folder() -> Path:
    root = os.environ.get('TORCH_EXTENSIONS_DIR')
    if not root:
        from torch.utils import cpp_extension
        root = cpp_extension.get_default_build_root()
        if '~' in Path(root).parts:  # it would be made where the user stands
            raise OSError('there is no home folder for compiled files; set '
                          'TORCH_EXTENSIONS_DIR to a folder')
    return Path(root) / 'frn_mmdet'


def _key(source: Path, command: list[str]) -> str:
    """What a library was made from and is for."""
    parts = [*command, torch.__version__, platform.machine(),
             *platform.libc_ver()]
    if any('native' in word for word in command):  # -march=native
        parts.append(_cpu_flags())
    code = [path.read_bytes() for path in (source, *HEADERS)]
    return _digest(os.fsencode('\n'.join(parts)) + b''.join(code))


def _cpu_flags() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((x for x in lines if x.startswith(('flags', 'Features'))), '')


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _cached(folder: Path, stem: str) -> Path | None:
    """Return a library that is what its name says.

    To load one that was cut short would end the process.
    """
    for path in folder.glob(_name(stem, '*')):
        with contextlib.suppress(OSError):
            if path.name == _name(stem, _digest(path.read_bytes())):
                return path
    return None


def _name(stem: str, digest: str) -> str:
    return f'{stem}-{digest}.so'


def _compile(command: list[str], folder: Path, stem: str) -> Path:
    """Write all of the file or nothing, in place of a broken one."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        part = Path(scratch) / 'part.so'
        _run([*command, '-o', str(part)], scratch)
        if not part.is_file():
            raise OSError(f'{command[0]} reports success, but wrote no file')
        for broken in folder.glob(_name(stem, '*')):
            with contextlib.suppress(OSError):
                broken.unlink()
        return part.replace(folder / _name(stem, _digest(part.read_bytes())))


def _run(command: list[str], scratch: str) -> None:
    """Run a compiler, with its temporary files in a folder of ours.

    Raises:
        OSError: If it fails or takes too long.
    """
    errors = Path(scratch) / 'errors'
    with errors.open('wb') as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=file, start_new_session=True,
            env={**os.environ, 'TMPDIR': scratch, 'LC_ALL': 'C'})
    try:
        status = process.wait(PATIENCE)
    except BaseException as error:  # Ctrl-C, too
        os.killpg(process.pid, signal.SIGKILL)  # it is several processes
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise OSError(f'{command[0]} did not end within {PATIENCE:g} '
                          'seconds') from error
        raise
    if status:
        text = errors.read_text('ascii', 'backslashreplace').strip()
        lines = [x for x in text.splitlines() if 'error' in x]
        raise OSError('the C++ source does not compile here: '
                      f'{(lines or text.splitlines() or [status])[0]}')
