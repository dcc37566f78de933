"""A detector made ready to leave PyTorch, in whatever format."""

import copy
import keyword
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..switch import fold_ws
from .half import halve
from .raw import RawMaps
from .retinanet import Detections

# No map of any level may have a side of 1: that would become a constant.
EXAMPLE = (2, 3, 320, 448)


class Prepared(NamedTuple):
    """What an exporter takes.

    Attributes:
        model (nn.Module): A :class:`.retinanet.Detections`, or with ``raw``
            a :class:`.raw.RawMaps`, in test mode, on the CPU.
        args (dict[str, Tensor]): By name, an example of its arguments.
        shapes (dict[str, dict]): Of each, the name of each dimension that
            may have another size.
    """

    model: nn.Module
    args: dict[str, Tensor]
    shapes: dict[str, dict[int, str]]


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
    if fp16:
        halve(detector)
        model.dtype = torch.float16
    args = dict(images=torch.zeros(EXAMPLE))
    shapes = dict(images={0: 'batch', 2: 'height', 3: 'width'})
    if not raw:
        args['sizes'] = torch.tensor([EXAMPLE[2:]] * EXAMPLE[0])
        shapes['sizes'] = {0: 'batch'}
    return Prepared(model, args, shapes)


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
