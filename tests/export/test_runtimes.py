"""A runtime that is not there, or a file that is none, is a sentence."""

import sys

import pytest

from frn_mmdet.errors import ConfigError
from frn_mmdet.export.runtimes import RUNTIMES, open_in


def test_an_unknown_runtime_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match='tensorrt is none; choose '
                       'onnxruntime or openvino'):
        open_in('tensorrt', tmp_path / 'x.onnx')


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_a_missing_runtime_says_what_to_install(
        runtime, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(ConfigError, match=f'pip install {runtime}'):
        open_in(runtime, tmp_path / 'x.onnx')


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_a_file_that_is_none_is_an_error(runtime, tmp_path):
    path = tmp_path / 'x.onnx'
    path.write_bytes(b'no network')
    with pytest.raises(ConfigError, match=f'cannot be run by {runtime}'):
        open_in(runtime, path)
