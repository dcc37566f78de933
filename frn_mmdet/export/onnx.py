"""Write a detector as ONNX."""

import warnings
from pathlib import Path

import torch
from torch import nn

from ..errors import ConfigError
from ..utils.whole_file import whole_file
from .nms import translations
from .prepare import prepare

OPSET = 18  # the lowest, so the most widely read, that torch writes


def export_onnx(detector: nn.Module, path: Path, raw: bool = False,
                fp16: bool = False) -> None:
    """Write a detector, of standard operators, for any batch and image size.

    Inputs and outputs are those of :class:`.retinanet.Detections`,
    ``images`` and ``sizes``, ``dets`` and ``labels``.

    Args:
        detector (nn.Module): A RetinaNet of mmdet; it is not changed.
        path (Path): To write to.
        raw (bool): Write the maps of the dense head instead, of any detector
            that has one, from ``images`` alone: see :class:`.raw.RawMaps`,
            also for their names. Defaults to False.
        fp16 (bool): Convolve in float16; norms, boxes, inputs and outputs
            stay float32. Defaults to False.

    Raises:
        ConfigError: If the detector is none that can be exported, the
            packages are missing, or the file cannot be written.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'to export needs the package {error.name}: pip '
                          'install onnx onnxscript') from error
    model, args, shapes, outputs = prepare(detector, raw, fp16)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch about itself
        program = torch.onnx.export(
            model, tuple(args.values()), input_names=list(args),
            output_names=outputs, dynamic_shapes=tuple(shapes.values()),
            opset_version=OPSET, dynamo=True,
            custom_translation_table=translations(), verbose=False)
    if not raw:  # else the name is how the number follows from the height
        for output in program.model.graph.outputs:
            output.shape = onnx_ir.Shape(
                ['batch', 'detections', *output.shape[2:]])
    with whole_file(path, 'OUT') as file:
        file.write(program.model_proto.SerializeToString())
