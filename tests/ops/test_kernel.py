"""Choosing a kernel, and building the CPU's."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fresh import python

from frn_mmdet import FRN, kernel_for, use_kernel
from frn_mmdet.ops import build

ASK = """
import torch
from frn_mmdet import FRN, kernel_for
layer = FRN(3, tlu=True)
x = torch.randn(2, 3, 4, 4, requires_grad=True)
layer(x).sum().backward()
layer(x)
print(kernel_for('cpu'))
"""


def test_a_cpu_has_a_kernel():
    """On a machine without a C++ compiler this fails, and may."""
    assert kernel_for('cpu').name == 'cpp'
    assert kernel_for(torch.device('cpu', 0)) == ('cpp', '', 'cpp')


def test_other_devices_have_none_and_say_so():
    kernel = kernel_for('meta')
    assert kernel.name == 'plain'
    assert 'meta' in kernel.reason
    x = torch.randn(2, 3, 4, 4, device='meta')
    assert FRN(3, tlu=True).to('meta')(x).shape == x.shape


def test_use_kernel_holds_inside_alone():
    with use_kernel('plain'):
        assert kernel_for('cpu').name == 'plain'
        with use_kernel('native'):
            assert kernel_for('cpu').name == 'cpp'
        assert kernel_for('cpu').name == 'plain'
    assert kernel_for('cpu').name == 'cpp'
    with pytest.raises(KeyError), use_kernel('plain'):
        raise KeyError
    assert kernel_for('cpu').name == 'cpp'


def test_a_choice_twice_is_two():
    """Each ends with its own block, whatever is chosen around it."""
    with use_kernel('plain'):
        with use_kernel('native'):
            with use_kernel('plain'):
                assert kernel_for('cpu').name == 'plain'
            assert kernel_for('cpu').name == 'cpp'
        assert kernel_for('cpu').name == 'plain'
    assert kernel_for('cpu').name == 'cpp'


def test_threads_that_overlap_keep_their_choices():
    """The first to come in is the first to go out."""
    inside, leave = threading.Event(), threading.Event()
    names = []

    def other():
        with use_kernel('plain'):
            names.append(kernel_for('cpu').name)
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(60)
    with use_kernel('native'):
        names.append(kernel_for('cpu').name)
        leave.set()
        thread.join()
        names.append(kernel_for('cpu').name)
    assert names == ['plain', 'cpp', 'cpp']
    assert kernel_for('cpu').name == 'cpp'


def test_a_thread_without_a_choice_follows():
    """As those of autograd and of nn.DataParallel have to."""
    with ThreadPoolExecutor(1) as pool:
        with use_kernel('plain'):
            assert pool.submit(kernel_for, 'cpu').result().name == 'plain'
        assert pool.submit(kernel_for, 'cpu').result().name == 'cpp'


def test_compiled_code_follows_the_choice():
    layer, x = FRN(3), torch.randn(2, 3, 4, 4)
    seen = []

    def backend(graph, _):
        seen.append('frn_mmdet' in graph.code)
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    with torch.no_grad():
        compiled(x)
        with use_kernel('plain'):
            compiled(x)
        compiled(x)
    assert seen == [True, False]


def test_the_choice_decides_what_runs():
    layer, x = FRN(3), torch.randn(2, 3, 4, 4, requires_grad=True)
    native = layer(x).grad_fn.name()
    with use_kernel('plain'):
        assert 'PlainFRN' in layer(x).grad_fn.name()
    assert 'PlainFRN' not in native


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="'fast'; choose one of auto, plain"):
        with use_kernel('fast'):
            pass
    text = python('import frn_mmdet', ok=False, FRN_MMDET_KERNEL='fast')
    assert "FRN_MMDET_KERNEL: 'fast'; choose one of auto" in text


def test_the_environment_variable():
    assert "name='plain'" in python(ASK, FRN_MMDET_KERNEL='plain')
    python('import frn_mmdet', FRN_MMDET_KERNEL='')  # as if it were not set


def test_native_where_there_is_none_is_an_error():
    with use_kernel('native'), pytest.raises(RuntimeError) as error:
        FRN(3).to('meta')(torch.randn(2, 3, 4, 4, device='meta'))
    assert 'no native kernel for meta' in str(error.value)


@pytest.mark.parametrize('compiler, words', [
    ('/no/such/c++', 'there is no C++ compiler (/no/such/c++)'),
    ('false', 'source does not compile here'),
])
def test_without_a_compiler_plain_pytorch_runs(tmp_path, compiler, words):
    text = python(ASK, CXX=compiler, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert "name='plain'" in text
    said = [line for line in text.splitlines() if 'runs in plain' in line]
    assert len(said) == 1
    assert words in said[0]
    assert list(tmp_path.rglob('*.so')) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    text = python(ASK, TORCH_EXTENSIONS_DIR=str(tmp_path / 'file'))
    assert "name='plain'" in text
    assert 'runs in plain PyTorch' in text


def test_two_processes_compile_once(tmp_path):
    """As the ranks of one launch do; a lock that a killed one left is free."""
    built = {name: build.library(name) for name in ('cpu', 'host')}
    compiler = tmp_path / 'c++'  # what a real one makes, in a second
    compiler.write_text(f"""#!/bin/sh
for out; do :; done
sleep 1
case "$*" in *cpu.cpp*) cp "{built['cpu']}" "$out";;
*) cp "{built['host']}" "$out";; esac
""")
    compiler.chmod(0o755)
    variables = dict(CXX=str(compiler), TORCH_EXTENSIONS_DIR=str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda _: python(ASK, **variables), range(2)))
    assert all("name='cpp'" in text for text in texts)
    for name in ('cpu', 'host'):
        assert ''.join(texts).count(f'Compiling {name}.cpp of FRN') == 1
    libraries = list(tmp_path.rglob('*.so'))
    assert len(libraries) == 2
    before = [library.stat().st_mtime_ns for library in libraries]
    text = python(ASK, **variables)
    assert "name='cpp'" in text
    assert 'Compiling' not in text
    assert before == [library.stat().st_mtime_ns for library in libraries]
