"""A detector made ready to leave PyTorch."""

import copy
import keyword
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..switch import fold_ws
from .half import halve
from .raw import RawMaps
from .retinanet import Detections

# No map of any level may have a side of 1: that would become a constant.
BATCH, SIZE = 2, (320, 448)


class Prepared(NamedTuple):
    """What an exporter takes.

    Attributes:
        model (nn.Module): A :class:`.retinanet.Detections`, or with ``raw``
            a :class:`.raw.RawMaps`, in test mode, on the CPU.
        args (dict[str, Tensor]): By name, an example of its arguments.
        shapes (dict[str, dict]): Of each, the name of each dimension that
            may have another size.
        outputs (list[str]): The names of what it returns.
    """

    model: nn.Module
    args: dict[str, Tensor]
    shapes: dict[str, dict[int, str]]
    outputs: list[str]


def prepare(detector: nn.Module, raw: bool, fp16: bool) -> Prepared:
    """Make a detector ready.

    Args:
        detector (nn.Module): One of mmdet's; it is not changed.
        raw (bool): Up to the maps of its dense head.
        fp16 (bool): With convolutions in float16.

    Returns:
        Prepared: The model with an example of what it takes.

    Raises:
        ConfigError: If the detector is none that can be exported.
    """
    detector = fold_ws(copy.deepcopy(detector)).cpu().float().eval()
    rename_keywords(detector)
    model = (RawMaps if raw else Detections)(detector).eval()
    # It runs before an exporter, which would word an error in its own way.
    args, outputs = run_once(model, raw)
    shapes = dict(images={0: 'batch', 2: 'height', 3: 'width'})
    if not raw:
        shapes['sizes'] = {0: 'batch'}
    # Maps are named as they are made.
    names = list(outputs) if raw else ['dets', 'labels']
    if fp16:
        halve(detector)
        model.dtype = torch.float16
    return Prepared(model, args, shapes, names)


@torch.no_grad()
def run_once(model: nn.Module, raw: bool) -> tuple[dict[str, Tensor], Any]:
    """Return arguments that a model takes, and what it gives for them.

    An image has 3 channels, or those of the first convolution (which are 12
    where YOLOX takes pixels in fours).
    """
    first = next((module.in_channels for module in model.modules()
                  if isinstance(module, nn.Conv2d)), 3)
    for channels in dict.fromkeys((3, first)):
        args = dict(images=torch.zeros(BATCH, channels, *SIZE))
        if not raw:
            args['sizes'] = torch.tensor([SIZE] * BATCH)
        try:
            return args, model(*args.values())
        except RuntimeError:
            if channels == first:
                raise


def rename_keywords(model: nn.Module) -> None:
    """Give norms another name, in place, that are called as a keyword is.

    An InstanceNorm is ``in`` to mmcv, and ``torch.export`` writes Python.
    """
    for module in model.modules():
        name = getattr(module, 'norm_name', None)
        if name is not None and keyword.iskeyword(name):
            norm = getattr(module, name)
            delattr(module, name)
            module.norm_name = f'{name}_'
            module.add_module(module.norm_name, norm)
