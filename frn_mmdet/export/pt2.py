"""Compile a detector ahead of time, for PyTorch without Python."""

import io
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim
from torch.fx.experimental import _config as symbolic

from ..errors import ConfigError
from ..utils.whole_file import whole_file
from .greedy import greedy_nms
from .prepare import prepare


def export_pt2(detector: nn.Module, path: Path, raw: bool = False) -> None:
    """Write an AOTInductor package, for any batch and image size.

    It takes and gives what the ONNX does, the maps of ``raw`` in a dict, and
    is machine code for this machine's kind of CPU:
    ``torch._inductor.aoti_load_package`` loads it, without this plugin.

    Args:
        detector (nn.Module): A RetinaNet of mmdet; it is not changed.
        path (Path): To write to.
        raw (bool): See :func:`.onnx.export_onnx`. Defaults to False.

    Raises:
        ConfigError: If the detector is none that can be exported, it cannot
            be compiled, or the file cannot be written.
    """
    model, args, shapes = prepare(detector, raw, fp16=False)
    if not raw:
        model.nms = greedy_nms
    shapes = tuple(dict.fromkeys(shape, Dim.DYNAMIC)
                   for shape in shapes.values())
    package = io.BytesIO()
    # The option lets a batch be of 1, by which torch would not abide.
    with torch.no_grad(), warnings.catch_warnings(), symbolic.patch(
            backed_size_oblivious=True):
        warnings.simplefilter('ignore')  # of torch about itself
        program = torch.export.export(
            model, tuple(args.values()), dynamic_shapes=shapes)
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=package)
        except torch._inductor.exc.InductorError as error:
            reason = str(error).partition('\n')[0]
            raise ConfigError(f'it cannot be compiled: {reason}') from error
    with whole_file(path, 'OUT') as file:
        file.write(package.getvalue())
