"""An exported detector in the runtimes that it was written for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import ConfigError

INPUTS = ['images', 'sizes']
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def open_in(runtime: str, path: Path, threads: int | None = None) -> Run:
    """Load a file for the CPU.

    Args:
        runtime (str): One of :data:`RUNTIMES`.
        path (Path): Of the ONNX file.
        threads (int, optional): Of the CPU; the runtime's own choice if
            None. Defaults to None.

    Returns:
        function: Takes a dict of the inputs' names and arrays, returns the
        list of outputs. OpenVINO's arrays are overwritten by the next call.

    Raises:
        ConfigError: If the runtime is unknown, not installed, or refuses the
            file, or the file is no detector; at call, if it refuses the
            inputs.
    """
    check_installed(runtime)
    explained = _explained(f'{path} cannot be run by {runtime}')
    names, run = explained(RUNTIMES[runtime])(str(path), threads)
    if names != INPUTS:
        raise ConfigError(f'{path} takes {names}, not {INPUTS}: it is no '
                          'detector that export.py wrote without --raw')
    return explained(run)


def check_installed(runtime: str) -> None:
    """Refuse what :func:`open_in` would, before there is a file.

    Raises:
        ConfigError: If the runtime is unknown or not installed.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f'runtime: {runtime} is none; choose '
                          + ' or '.join(RUNTIMES))
    try:
        import_module(runtime)
    except ImportError as error:
        raise ConfigError(f'runtime: {runtime} is not installed: pip install '
                          f'{runtime}') from error


@contextmanager
def _explained(sentence: str) -> Iterator[None]:
    """Make a sentence of whatever a runtime may raise; decorates functions."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        # OpenVINO says first where in its sources it is.
        reason = next((line for line in lines if line
                       and not line.startswith('Exception from ')), '')
        raise ConfigError(f'{sentence}: {reason}') from error


def as_arrays(**inputs: Tensor) -> dict[str, np.ndarray]:
    """Inputs as the runtimes take them."""
    return {name: x.numpy() for name, x in inputs.items()}


def _onnxruntime(path: str, threads: int | None) -> tuple[list[str], Run]:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # A thread that waits for work is not to keep others from theirs.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    session = onnxruntime.InferenceSession(
        path, options, providers=['CPUExecutionProvider'])
    return ([x.name for x in session.get_inputs()],
            lambda inputs: session.run(None, inputs))


def _openvino(path: str, threads: int | None) -> tuple[list[str], Run]:
    import openvino
    settings = {'INFERENCE_NUM_THREADS': threads} if threads else {}
    # In the precision of the file: on some CPUs it would choose bfloat16.
    settings |= {'INFERENCE_PRECISION_HINT': 'f32'}
    core = openvino.Core()
    network = core.read_model(path)
    # Compiled, an input may have the name of what follows it.
    names = [x.get_any_name() for x in network.inputs]
    model = core.compile_model(network, 'CPU', settings)
    request = model.create_infer_request()

    def run(inputs):
        request.infer(inputs, share_inputs=True)
        return [request.get_output_tensor(i).data
                for i in range(len(model.outputs))]

    return names, run


RUNTIMES = dict(onnxruntime=_onnxruntime, openvino=_openvino)
