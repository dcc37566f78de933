"""The GPU's host side, on a CUDA that does nothing (needs a CUDA build)."""

from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob('on_fake_*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test(on_fake_cuda, path):
    on_fake_cuda(path)
