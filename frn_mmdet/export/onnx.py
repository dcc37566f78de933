"""Write a detector as ONNX."""

import copy
import warnings
from pathlib import Path

import torch
from torch import nn

from ..errors import ConfigError
from ..switch import fold_ws
from .half import halve
from .nms import translations
from .raw import RawMaps
from .retinanet import Detections

OPSET = 18  # the first of which torch.onnx writes
# No map of any level may have a side of 1: that would become a constant.
EXAMPLE = (2, 3, 320, 448)


def export_onnx(detector: nn.Module, path: Path, raw: bool = False,
                fp16: bool = False) -> None:
    """Write a detector, with any batch and image size, of ONNX's operators.

    The inputs and outputs are those of :class:`.retinanet.Detections`:
    ``images`` and ``sizes``, ``dets`` and ``labels``.

    Args:
        detector (nn.Module): A RetinaNet of mmdet; it is not changed.
        path (Path): To write to.
        raw (bool): Write the maps of the dense head instead, see
            :class:`.raw.RawMaps`, of any detector that has one; the one
            input is ``images``. Defaults to False.
        fp16 (bool): Convolve in float16; norms, boxes, inputs and outputs
            stay float32. Defaults to False.

    Raises:
        ConfigError: If the detector is none that can be exported, or the
            packages are missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'to export needs the package {error.name}: pip '
                          'install onnx onnxscript') from error
    detector = fold_ws(copy.deepcopy(detector)).cpu().float().eval()
    model = (RawMaps if raw else Detections)(detector)
    if fp16:
        halve(detector)
    args = (torch.zeros(EXAMPLE),)
    shapes = [{0: 'batch', 2: 'height', 3: 'width'}]
    names = dict(input_names=['images'])
    if not raw:
        args += (torch.tensor([EXAMPLE[2:]] * EXAMPLE[0]),)
        shapes.append({0: 'batch'})
        names = dict(input_names=['images', 'sizes'],
                     output_names=['dets', 'labels'])
    with torch.no_grad(), warnings.catch_warnings():
        program = torch.onnx.export(
            model, args, dynamo=True, dynamic_shapes=tuple(shapes),
            opset_version=OPSET, custom_translation_table=translations(),
            **names)
    program.save(path)
