"""A CUDA that does nothing, and what is launched on it.

Tests that need it are in files that pytest does not collect by itself:
``test_on_fake_cuda.py`` runs them in a process that has it.
"""

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

HERE = Path(__file__).parent
# What NVIDIA's headers ask a compiler, of a package that PyTorch leaves out.
HOST_DEFINES = '\n'.join(
    f'#define {name}' for name in (
        '__device_builtin__', '__device_builtin_texture_type__',
        '__device_builtin_surface_type__', '__cudart_builtin__', '__host__',
        '__device__', '__align__(n)', '__builtin_align__(n)', 'CUDARTAPI',
        'CUDARTAPI_CDECL')) + '\n'


@pytest.fixture(scope='session')
def on_fake_cuda(tmp_path_factory):
    """on_fake_cuda(*arguments): pytest, in a process with the fake CUDA."""
    if torch.version.cuda is None:
        pytest.skip('this PyTorch is not a CUDA build')
    folder = tmp_path_factory.mktemp('fake_cuda')
    (folder / 'crt').mkdir()
    (folder / 'crt/host_defines.h').write_text(HOST_DEFINES)
    root = Path(importlib.util.find_spec('nvidia')
                .submodule_search_locations[0])
    header, = root.glob('cu[0-9]*/include/cuda_runtime_api.h')
    subprocess.run(
        ['cc', '-O2', '-shared', '-fPIC', '-w', f'-I{folder}',
         f'-I{header.parent}', HERE / 'fake_cuda.c', '-ldl',
         '-o', folder / 'libcuda.so.1'],
        check=True)
    variables = dict(
        LD_PRELOAD=f'{folder}/libcuda.so.1', LD_LIBRARY_PATH=str(folder),
        TRITON_LIBCUDA_PATH=str(folder), OMP_NUM_THREADS='1')
    without = ('PYTEST_XDIST_WORKER', 'PYTEST_ADDOPTS', 'TRITON_INTERPRET',
               'CUDA_VISIBLE_DEVICES')

    def run(*arguments):
        environment = {**os.environ, **variables}
        for name in without:
            environment.pop(name, None)
        result = subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', '-n', '0',
             '-p', 'no:cacheprovider', *arguments],
            env=environment, cwd=HERE.parent.parent, capture_output=True,
            text=True)
        assert result.returncode == 0, result.stdout + result.stderr

    return run


class Record(ctypes.Structure):
    """As in fake_cuda.c."""

    _fields_ = [('function', ctypes.c_ulonglong),
                ('stream', ctypes.c_ulonglong),
                ('grid', ctypes.c_uint * 3), ('block', ctypes.c_uint * 3),
                ('shared', ctypes.c_uint), ('count', ctypes.c_uint),
                ('parameters', ctypes.c_ulonglong * 32)]


class Launch(NamedTuple):
    """A launch through the driver, or a memset: of '', no kernel."""

    kernel: str
    function: int
    stream: int
    grid: tuple
    block: tuple
    shared: int
    parameters: tuple


class Fake:
    """Looks at what is launched."""

    def __init__(self):
        self._library = ctypes.CDLL('libcuda.so.1')
        self._library.fake_get.restype = ctypes.POINTER(Record)
        self._library.fake_know.argtypes = [ctypes.c_ulonglong, ctypes.c_uint]
        self._kernels = {}

    def know(self):
        """Look up what Triton has compiled, and its parameters."""
        from frn_mmdet.ops import cuda_grouped_kernels, cuda_kernels
        for kernel in (vars(cuda_kernels)
                       | vars(cuda_grouped_kernels)).values():
            for caches in getattr(kernel, 'device_caches', {}).values():
                for compiled in caches[0].values():
                    if compiled.function not in self._kernels:
                        types = _types(compiled)
                        self._kernels[compiled.function] = (
                            compiled.name, types)
                        self._library.fake_know(compiled.function, len(types))

    def launches(self, function):
        """Call, and return what was launched meanwhile."""
        self.know()
        self._library.fake_record(1)
        result = function()
        count = self._library.fake_recorded()
        assert count < 256
        found = [self._launch(self._library.fake_get(i)[0])
                 for i in range(count)]
        self._library.fake_record(0)
        return result, found

    def kernels(self):
        """How many kernels were launched, of whatever library."""
        return self._library.fake_kernels()

    def _launch(self, record):
        name, types = self._kernels.get(record.function, ('', ['u64', 'u64']))
        values = record.parameters[:record.count]
        assert len(values) == len(types), f'{name} is not known'
        narrow = [value if type_ in ('u64', 'b64') else value & 0xFFFFFFFF
                  for value, type_ in zip(values, types, strict=True)]
        return Launch(name, record.function, record.stream,
                      tuple(record.grid), tuple(record.block), record.shared,
                      tuple(narrow))


def _types(compiled):
    """['u64', 'f32', ...]: the parameters of the code."""
    head = compiled.asm['ptx'].partition('.entry')[2].partition(')')[0]
    return [part.split()[0].lstrip('.') for part in head.split('.param')[1:]]


@pytest.fixture(scope='session')
def fake():
    """The fake CUDA that this process has."""
    return Fake()


@pytest.fixture(autouse=True)
def agreed(monkeypatch, request):
    """There are no results, so C++'s and Python's are the same."""
    if 'fake' in request.fixturenames or torch.cuda.is_available():
        from frn_mmdet import kernel_for
        kernel_for('cuda')
        from frn_mmdet.ops import cuda_host
        monkeypatch.setattr(cuda_host, '_are_same', lambda *_: True)
