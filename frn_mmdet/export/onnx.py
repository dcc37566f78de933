"""Write a detector as ONNX."""

import copy
import keyword
import warnings
from pathlib import Path

import torch
from mmcv.cnn import ConvModule
from torch import nn

from ..errors import ConfigError
from ..switch import fold_ws
from ..whole_file import whole_file
from .half import halve
from .nms import translations
from .raw import RawMaps
from .retinanet import Detections

OPSET = 18  # the lowest, so the most widely read, that torch writes
# No map of any level may have a side of 1: that would become a constant.
EXAMPLE = (2, 3, 320, 448)


def export_onnx(detector: nn.Module, path: Path, raw: bool = False,
                fp16: bool = False) -> None:
    """Write a detector, of standard operators, for any batch and image size.

    Inputs and outputs are those of :class:`.retinanet.Detections`,
    ``images`` and ``sizes``, ``dets`` and ``labels``.

    Args:
        detector (nn.Module): A RetinaNet of mmdet; it is not changed.
        path (Path): To write to.
        raw (bool): Write the maps of the dense head instead, of any detector
            that has one, from ``images`` alone: see :class:`.raw.RawMaps`.
            Defaults to False.
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
    detector = fold_ws(copy.deepcopy(detector)).cpu().float().eval()
    rename_keywords(detector)
    model = (RawMaps if raw else Detections)(detector).eval()
    if fp16:
        halve(detector)
        model.dtype = torch.float16
    images = torch.zeros(EXAMPLE)
    args = [images]
    names = ['images']
    shapes = [{0: 'batch', 2: 'height', 3: 'width'}]
    if not raw:
        args.append(torch.tensor([images.shape[2:]] * len(images)))
        names.append('sizes')
        shapes.append({0: 'batch'})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch about itself
        program = torch.onnx.export(
            model, tuple(args), input_names=names, output_names=model.names,
            dynamic_shapes=tuple(shapes), opset_version=OPSET, dynamo=True,
            custom_translation_table=translations(), verbose=False)
    if not raw:  # else the name is how the number follows from the height
        for output in program.model.graph.outputs:
            output.shape = onnx_ir.Shape(
                ['batch', 'detections', *output.shape[2:]])
    with whole_file(path, 'OUT') as file:
        file.write(program.model_proto.SerializeToString())


def rename_keywords(model: nn.Module) -> None:
    """Give norms another name, in place, that are called as a keyword is.

    An InstanceNorm is ``in`` to mmcv, and ``torch.export`` writes Python.
    """
    for module in model.modules():
        if isinstance(module, ConvModule) and module.with_norm:
            name, norm = module.norm_name, module.norm
            if keyword.iskeyword(name):
                delattr(module, name)
                module.norm_name = f'{name}_'
                module.add_module(module.norm_name, norm)
