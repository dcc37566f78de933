"""Standardize the weights of the convolutions that feed a norm."""

from mmcv.cnn.bricks.wrappers import Conv2d
from torch import nn

from ..errors import ConfigError
from ..layers import ConvWS
from .flow import Flow
from .norms import NormPlan, part_of
from .place import replace_module
from .sites import is_standardized

# Exactly these: a class of its own may do something else with its weight.
PLAIN = (nn.Conv2d, Conv2d)


def standardize_convs(model: nn.Module, plan: NormPlan, flow: Flow,
                      norms: set[str]) -> int:
    """Replace, in place, each convolution that feeds a norm of the plan.

    Args:
        model (nn.Module): A detector.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
        flow (Flow): What feeds its norms.
        norms (set[str]): Paths of those of the plan.

    Returns:
        int: How many convolutions there are now with standardized weights.

    Raises:
        ConfigError: If one cannot be standardized, or nobody knows what
            feeds a norm. The model is then as it was.
    """
    feeds = {}
    for path in sorted(norms):
        if path not in flow.norms:
            raise ConfigError(
                f'{path}: it did not run when the detector was tried on a '
                'small image, so nobody knows which convolution feeds it; '
                f'{_way_out(path)}')
        for conv in flow.norms[path].convs:
            if part_of(conv) in plan.parts:
                feeds.setdefault(conv, path)
    new = {conv: _standardized(model.get_submodule(conv), conv, norm, plan)
           for conv, norm in feeds.items()}
    for path, conv in new.items():
        if conv is not model.get_submodule(path):
            replace_module(model, path, conv)
    return len(new)


def fold_ws(model: nn.Module) -> nn.Module:
    """Make plain convolutions, in place, of those with standardized weights.

    For whoever takes a detector out of PyTorch, or wants to read what
    convolves. It gives the same maps, and is not to be trained any further.

    Args:
        model (nn.Module): Any, with :class:`~frn_mmdet.layers.ConvWS` in it.

    Returns:
        nn.Module: The model.
    """
    for path, module in list(model.named_modules()):
        if type(module) is ConvWS:
            replace_module(model, path, module.folded())
    return model


def _standardized(conv: nn.Module, path: str, norm: str,
                  plan: NormPlan) -> nn.Module:
    if type(conv) is ConvWS:
        return conv
    try:
        if type(conv) not in PLAIN and not is_standardized(conv) or (
                'forward' in vars(conv)):
            raise ValueError(f'{type(conv).__name__} is no plain convolution')
        return ConvWS.like(conv)
    except ValueError as error:
        raise ConfigError(
            f'{path}: it feeds the {plan.name} at {norm} and its weights '
            f'cannot be standardized ({error}); {_way_out(path)}') from None


def _way_out(path: str) -> str:
    return (f'leave {part_of(path)!r} out of model.norm_cfg.parts, or set '
            'model.norm_cfg.ws=False')
