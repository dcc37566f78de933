"""What may be broken about a compiler, a cache or the environment."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from fresh import python

from frn_mmdet import kernel_for
from frn_mmdet.ops import build, cpu

assert kernel_for('cpu').name == 'cpp'
BUILT = build.library('cpu')  # of this machine, whole


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path / 'cache'))
    return tmp_path / 'cache/frn_mmdet'


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """compiler(script) makes a shell script CXX; $out is what to write."""

    def make(script):
        path = tmp_path / 'my c++'
        path.write_text('#!/bin/sh\nfor out; do :; done\n' + script)
        path.chmod(0o755)
        monkeypatch.setenv('CXX', str(path))

    return make


CPU = Path(build.__file__).with_name('cpu.cpp')
COPIES = f'echo >> "$0.calls"; cp "{BUILT}" "$out"'


@pytest.mark.parametrize('text, words', [
    ('', ['c++']),
    ('  ', ['c++']),
    ('sh', ['sh']),
    ('sh -x', ['sh', '-x']),
    ('sh -DNAME="a b"', ['sh', '-DNAME=a b']),
    ("'sh' ''", ['sh', '']),
])
def test_cxx_is_a_command_line(monkeypatch, text, words):
    monkeypatch.setenv('CXX', text)
    assert build._compiler() == words


@pytest.mark.parametrize('text, words', [
    ('/', 'no C++ compiler (/)'),
    ('/no/such/g++ -O3', 'no C++ compiler (/no/such/g++)'),
    ('"g++', 'No closing quotation'),
    ("''", 'no C++ compiler ()'),
    ('g++\udcff', 'no C++ compiler'),
])
def test_cxx_that_is_no_program(monkeypatch, cache, text, words):
    monkeypatch.setenv('CXX', text)
    assert words in cpu.load()


@pytest.mark.parametrize('script, words', [
    ('exit 0', 'reports success, but wrote no file'),
    ('mkdir "$out"', 'wrote no file'),
    ('exit 3', 'does not compile here: 3'),
    ('kill -SEGV $$', 'does not compile here'),
    (r"printf 'Fehler: f\374r error \377' >&2; exit 1", r'f\xfcr error \xff'),
    ('cat; echo error: end of input >&2; exit 1', 'error: end of input'),
])
def test_a_compiler_that_fails(cache, compiler, script, words):
    compiler(script)
    assert words in cpu.load()
    assert list(cache.glob('*.so')) == []


@pytest.mark.parametrize('script', [
    'echo no library > "$out"', f'head -c 20 "{BUILT}" > "$out"',
    ': > "$out"'])
def test_a_compiler_that_writes_nonsense(cache, compiler, script):
    compiler(script)
    reason = cpu.load()
    assert 'cannot be loaded' in reason
    assert 'delete it' in reason


def test_a_library_of_something_else(tmp_path):
    """In a process of its own, where the kernel has not been loaded."""
    source, library = tmp_path / 'x.cpp', tmp_path / 'x.so'
    source.write_text('int x;')
    subprocess.run(['c++', '-shared', '-fPIC', source, '-o', library],
                   check=True)
    script = tmp_path / 'c++'
    script.write_text(
        f'#!/bin/sh\nfor out; do :; done\ncp {library} "$out"')
    script.chmod(0o755)
    text = python('from frn_mmdet import kernel_for\n'
                  'print(kernel_for("cpu"))',
                  CXX=str(script), TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert "name='plain'" in text
    assert 'does not hold the kernel' in text


@pytest.mark.parametrize('damage', [
    lambda path: os.truncate(path, path.stat().st_size // 2),
    lambda path: os.truncate(path, 0),
    lambda path: path.write_text('no library'),
    lambda path: path.write_bytes(path.read_bytes()[:-1] + b'x'),
    lambda path: path.unlink(),
    lambda path: (path.unlink(), path.symlink_to('/no/such/file')),
    lambda path: path.rename(path.parent / (path.stem[:-1] + '.so')),
])
def test_a_broken_cache_is_rebuilt(tmp_path, cache, compiler, damage):
    """A library that was cut short would end the process with SIGBUS."""
    compiler(COPIES)
    whole = build.library('cpu')
    assert whole.read_bytes() == BUILT.read_bytes()
    damage(whole)
    assert build.library('cpu') == whole == build.library('cpu')
    assert whole.read_bytes() == BUILT.read_bytes()
    assert (tmp_path / 'my c++.calls').read_text() == '\n\n'  # two runs
    assert [path.suffix for path in sorted(cache.iterdir())] == [
        '.so', '.lock']


def test_a_cut_library_does_not_end_the_process(tmp_path):
    folder = tmp_path / 'frn_mmdet'
    folder.mkdir()
    cut = shutil.copy(BUILT, folder)
    os.truncate(cut, 10000)
    old = shutil.copy(cut, folder / 'cpu-0123456789abcdef.so')
    text = python(
        'from frn_mmdet.ops import build, library\n'
        'build._compile = lambda *_: print("compiles again") or '
        f'build.Path("{BUILT}")\n'
        'print(repr(build.load("cpu", "CPU")))',
        TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert text.splitlines()[-2:] == ['compiles again', 'None']
    assert old.exists()


def test_a_cache_that_cannot_be_written_is_read(cache, compiler):
    compiler(COPIES)
    whole = build.library('cpu')
    (cache / (whole.name[:20] + '.lock')).unlink()
    (cache / (whole.name[:20] + '.lock')).mkdir()
    assert build.library('cpu') == whole


def test_no_folder_for_temporary_files(monkeypatch, cache, compiler):
    compiler('test -d "$TMPDIR" && ' + COPIES)
    monkeypatch.setenv('TMPDIR', '/no/such/folder')
    assert build.library('cpu').is_file()


def test_a_file_where_the_folder_should_be(cache):
    cache.parent.write_text('')
    assert str(cache.parent) in cpu.load()


def test_no_home(monkeypatch):
    """As in a container that runs under any number."""

    def unknown(_):
        raise KeyError

    for name in ('HOME', 'XDG_CACHE_HOME', 'TORCH_EXTENSIONS_DIR'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('pwd.getpwuid', unknown)
    assert 'set TORCH_EXTENSIONS_DIR' in cpu.load()


def test_what_another_machine_cannot_run_has_another_name(monkeypatch):
    keys = set()
    for cxx in ('c++', 'c++ -march=native'):
        monkeypatch.setenv('CXX', cxx)
        for flags in ('avx2', 'avx2 avx512f'):
            monkeypatch.setattr(build, '_cpu_flags', lambda flags=flags: flags)
            keys.add(build._key(CPU, build._command(CPU)))
    assert len(keys) == 3
    monkeypatch.setattr('platform.libc_ver', lambda: ('glibc', '2.17'))
    assert build._key(CPU, build._command(CPU)) not in keys


def test_a_changed_header_has_another_name(monkeypatch, tmp_path):
    command = build._command(CPU)
    keys = {build._key(CPU, command)}
    for i, header in enumerate(build.HEADERS):
        changed = tmp_path / header.name
        changed.write_text(header.read_text() + '\n')
        monkeypatch.setattr(
            build, 'HEADERS',
            [*build.HEADERS[:i], changed, *build.HEADERS[i + 1:]])
        keys.add(build._key(CPU, command))
    assert len(keys) == 1 + len(build.HEADERS) == 7


def test_without_setuptools():
    text = python('import sys; sys.modules["setuptools"] = None\n'
                  'from frn_mmdet import kernel_for\n'
                  'print(kernel_for("cpu"))')
    assert "name='plain'" in text
    assert 'setuptools' in text


def test_a_compiler_that_hangs_is_ended_with_its_children(
        monkeypatch, cache, compiler, tmp_path):
    compiler(f'sleep 60 & echo $! > "{tmp_path}/pid"; wait')
    monkeypatch.setattr(build, 'PATIENCE', 1)
    assert 'did not end within 1 seconds' in cpu.load()
    child = Path(f'/proc/{(tmp_path / "pid").read_text().strip()}/stat')
    end = time.monotonic() + 20  # to be killed takes a busy machine a moment
    while _lives(child) and time.monotonic() < end:
        time.sleep(.05)
    assert not _lives(child)


def _lives(stat):
    try:
        return stat.read_text().split()[2] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False
