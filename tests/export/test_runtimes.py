"""A runtime that is not there, or a file that is none, is a sentence."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

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


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_inputs_that_a_runtime_refuses_are_an_error(runtime, tmp_path):
    """Such as images of 3 channels, for a detector of 1."""
    images, ends = (helper.make_tensor_value_info(
        name, TensorProto.FLOAT, ['n', 1, 4, 4]) for name in ('images', 'y'))
    sizes, same = (helper.make_tensor_value_info(
        name, TensorProto.INT64, ['n', 2]) for name in ('sizes', 'z'))
    graph = helper.make_graph(
        [helper.make_node('Relu', ['images'], ['y']),
         helper.make_node('Identity', ['sizes'], ['z'])],
        'both', [images, sizes], [ends, same])
    path = tmp_path / 'x.onnx'
    onnx.save(helper.make_model(
        graph, ir_version=10,
        opset_imports=[helper.make_opsetid('', 18)]), path)
    run = open_in(runtime, path)
    images = np.full((2, 1, 4, 4), -1, np.float32)
    sizes = np.ones((2, 2), np.int64)
    assert not run(dict(images=images, sizes=sizes))[0].any()
    with pytest.raises(ConfigError, match=f'be run by {runtime}: .*[1-3]'):
        run(dict(images=images.repeat(3, 1), sizes=sizes))
