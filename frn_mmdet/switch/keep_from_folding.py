"""Keep a batch norm from being folded into a convolution that is not its.

``fuse_conv_bn`` (mmcv) goes by the order in which a module lists its
children: a batch norm is folded into the last convolution before it. It
should not be where that convolution has a norm for each level (RetinaNet's
and RTMDet's heads), does not feed the norm (TOOD's head multiplies its weight
itself, NAS-FCOS's neck puts the norm first), or does something else with its
weight (mmcv's ``ConvWS`` and ``ConvAWS``).
"""

from collections import Counter

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import ConvWS
from .flow import Flow
from .ws import PLAIN

# The order of their children is the order in which they run.
ORDERED = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def keep_from_folding(model: nn.Module, flow: Flow) -> list[str]:
    """List, in place, such a convolution last: nothing is folded into it.

    Args:
        model (nn.Module): A detector.
        flow (Flow): What feeds its norms.

    Returns:
        list[str]: Paths of the norms for which that cannot be done.
    """
    owners = Counter(id(child) for module in model.modules()
                     for child in module.children())
    left = []
    for path, owner in model.named_modules():
        for norm, conv in _folds(owner):
            own = f'{path}.{norm}' if path else norm
            layer = getattr(owner, conv)
            seen = flow.norms.get(own)
            if seen is None or (
                    seen.fed_by and model.get_submodule(seen.fed_by) is layer
                    and _folds_or_refuses(layer) and owners[id(layer)] == 1):
                continue
            if isinstance(owner, ORDERED):
                left.append(own)
            else:
                _list_last(owner, conv)
    return left


def _folds(owner: nn.Module) -> list[tuple[str, str]]:
    """What ``fuse_conv_bn`` would fold: names of norms and convolutions."""
    folds, conv = [], None
    for name, child in owner.named_children():
        if isinstance(child, _BatchNorm) and conv is not None:
            folds.append((name, conv))
            conv = None
        elif isinstance(child, nn.Conv2d):
            conv = name
    return folds


def _folds_or_refuses(conv: nn.Module) -> bool:
    """Whether a norm is folded into it rightly, or not at all.

    Ours refuses to be given a bias, which one that has a bias cannot.
    """
    return type(conv) in PLAIN or type(conv) is ConvWS and conv.bias is None


def _list_last(owner: nn.Module, name: str) -> None:
    child = getattr(owner, name)
    delattr(owner, name)
    owner.add_module(name, child)
