"""The real tools, run as a user runs them, on a small generated data set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A data set of 16 + 4 images."""
    out = tmp_path_factory.mktemp('data') / 'shapes'
    run = subprocess.run([
        sys.executable, ROOT / 'tools/make_shapes.py', out, '--train', '16',
        '--val', '4'
    ], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return out


@pytest.fixture
def environment(shapes):
    """Of a subprocess: one thread, and the data set's folder."""
    return os.environ | dict(
        SHAPES_ROOT=str(shapes),
        COCO_ROOT=str(shapes),
        OMP_NUM_THREADS='1',
        PYTHON=sys.executable)


@pytest.fixture
def tool(environment, tmp_path):
    """tool(name, *args): run tools/name, check its exit, give its output."""

    def _tool(name, *args, ok=True, timeout=400):
        command = [sys.executable] if name.endswith('.py') else []
        run = subprocess.run(
            [*command, str(ROOT / 'tools' / name), *map(str, args)],
            env=environment,
            cwd=tmp_path,  # some tools of mmdet write to where they run
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout)
        assert (run.returncode == 0) is ok, run.stdout
        return run.stdout

    return _tool
