"""Standardize the weights of the convolutions that feed a norm."""

import copy
from contextlib import suppress
from typing import Any

from mmcv.cnn.bricks.wrappers import Conv2d
from torch import nn
from torch.nn.utils import (
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
)

from ..errors import ConfigError
from ..layers import ConvWS
from .flow import Flow
from .norms import NormPlan
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
                + plan.way_out([path], 'ws'))
        for conv in flow.norms[path].convs:
            if plan.holds_for(conv):
                feeds.setdefault(conv, path)
    new = {conv: _standardized(model.get_submodule(conv), conv, norm, plan)
           for conv, norm in feeds.items()}
    for path, conv in new.items():
        if conv is not model.get_submodule(path):
            replace_module(model, path, conv)
    return len(new)


def fold_ws(model: nn.Module) -> nn.Module:
    """Make plain convolutions, in place, of those with standardized weights.

    For whoever takes a detector out of PyTorch, wants detection free of the
    standardization in each call, or to read what convolves. It gives the same
    maps, and is not to be trained any further.

    Pruning, a parametrization, weight or spectral normalisation of such a
    weight is made permanent first.

    Args:
        model (nn.Module): Any, with :class:`~frn_mmdet.layers.ConvWS` in it.

    Returns:
        nn.Module: The model; if it is such a convolution, the plain one.

    Raises:
        ValueError: If another hook computes a convolution's weight.
    """
    convs = {path: module for path, module in model.named_modules()
             if isinstance(module, ConvWS)}
    for path, conv in convs.items():
        _make_permanent(conv, path)
    for path, conv in convs.items():
        if path:
            replace_module(model, path, _plain(conv))
        else:
            model = _plain(conv)
    return model


def to_ws(conv: nn.Conv2d) -> ConvWS:
    """A convolution as ``conv``, with the same parameters and hooks.

    Raises:
        ValueError: If it has filters of one element.
    """
    new = ConvWS(conv.in_channels, conv.out_channels, conv.kernel_size,
                 groups=conv.groups, device='meta')
    vars(new).update(attributes_of(conv))  # mmcv's has an eps of its own
    return new


def _plain(conv: ConvWS) -> nn.Conv2d:
    """A plain convolution that gives the same, with the same hooks."""
    new = nn.Conv2d.__new__(nn.Conv2d)
    vars(new).update(attributes_of(conv))
    del new.eps
    if parametrize.is_parametrized(conv):  # permanent from here on
        del new.parametrizations
        new.bias = conv.bias if conv.bias is None else nn.Parameter(
            conv.bias.detach(), conv.bias.requires_grad)
    new.weight = nn.Parameter(
        conv.standardized().detach(), conv.weight.requires_grad)
    return new


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module, those that are dicts copied."""
    return {key: copy.copy(value) if isinstance(value, dict) else value
            for key, value in vars(module).items()}


def _make_permanent(conv: ConvWS, path: str) -> None:
    """Let its weight be a parameter, which a hook may compute so far."""
    for remove in (prune.remove, remove_weight_norm, remove_spectral_norm):
        with suppress(ValueError):  # it was not there
            remove(conv, 'weight')
    if 'weight' in vars(conv):
        raise ValueError(
            f'{path or "the convolution"}: its weight is no parameter, so a '
            'hook that fold_ws does not know computes it before each call; '
            'make it permanent first')


def _standardized(conv: nn.Module, path: str, norm: str,
                  plan: NormPlan) -> nn.Module:
    if type(conv) is ConvWS:
        return conv
    try:
        if type(conv) not in PLAIN and not is_standardized(conv) or (
                'forward' in vars(conv)):
            raise ValueError(f'{type(conv).__name__} is no plain convolution')
        return to_ws(conv)
    except ValueError as error:
        raise ConfigError(
            f'{path}: it feeds the {plan.name} at {norm} and its weights '
            f'cannot be standardized ({error}); '
            + plan.way_out([path], 'ws')) from None
