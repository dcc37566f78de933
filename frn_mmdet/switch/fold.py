"""Keep a batch norm from being folded into a convolution that is not its.

``fuse_conv_bn`` (mmcv) goes by the order in which a module lists its
children: a batch norm is folded into the last convolution before it. TOOD's
head multiplies that convolution's weight itself, NAS-FCOS's neck puts the
norm first. Their own norm is another; under BN a fold would be wrong.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .flow import Flow

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
    left = []
    for path, owner in model.named_modules():
        for norm, conv in _folds(owner):
            own = f'{path}.{norm}' if path else norm
            seen = flow.norms.get(own)
            if seen is None or seen.fed_by is not None and (
                    model.get_submodule(seen.fed_by) is getattr(owner, conv)):
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


def _list_last(owner: nn.Module, name: str) -> None:
    child = getattr(owner, name)
    delattr(owner, name)
    owner.add_module(name, child)
