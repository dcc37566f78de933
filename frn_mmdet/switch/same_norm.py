"""Refuse weights whose norms are not those of the model.

mmengine only warns of keys that do not match, and the detector would run on
with norms that were never trained, or without what was learnt. Layers that
one side has not at all are nobody's loss: a head of another detector, a
convolution more.
"""

import inspect
import re

from mmcv.cnn.bricks.norm import infer_abbr
from torch import nn

from ..errors import ConfigError
from .norm_places import Place, convs_of, is_vector, places_of
from .norms import NormPlan, is_norm, part_of
from .sites import norms_of

# The argument that gives a norm this parameter or buffer. Not tau: without
# thresholds a checkpoint is of ReLUs, and TLUs start as such.
ARGUMENTS = dict(
    eps_l='learnable_eps',
    weight='affine',
    bias='bias',  # where there is a gamma
    running_mean='track_running_stats',
    running_var='track_running_stats')
# Where place.py hangs a TLU on a module: ``tlu``, or ``tlu.0`` and so on.
HUNG = re.compile(r'(^|\.)tlu(\.\d+)?$')


def check_same_norm(module: nn.Module, state_dict: dict, prefix: str,
                    at: str, plan: NormPlan) -> None:
    """Compare a state dict that is not converted with the model's norms.

    Args:
        module (nn.Module): A detector, its norms switched, or a part of it.
        state_dict (dict): What is being loaded into it.
        prefix (str): Of the module's keys in ``state_dict``.
        at (str): Path of the module in the detector, '' for itself.
        plan (NormPlan): What ``model.norm_cfg`` asks for.

    Raises:
        ConfigError: If, in a layer that both have, one has another norm or
            none, or a parameter of it that the other lacks.
    """
    places = places_of(module, state_dict, prefix, at, plan)
    _check_norms(places, state_dict, plan)
    _check_not_elsewhere(places, module, state_dict, prefix, plan)
    _check_parameters(module, state_dict, prefix, at, plan)
    _check_lost_norms(module, state_dict, prefix, at, plan)


def check_thresholds(module: nn.Module, state_dict: dict, prefix: str,
                     plan: NormPlan, converted: bool) -> None:
    """Refuse thresholds of a TLU for which the model has no place.

    Args:
        module (nn.Module): See :func:`check_same_norm`, also for the others.
        state_dict (dict): What is being loaded into it.
        prefix (str): Of the module's keys in ``state_dict``.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
        converted (bool): Whether the state dict was trained with BN.

    Raises:
        ConfigError: If the layer that has the threshold is there, or what
            its TLU hangs on. Between detectors of one norm that has a TLU
            wherever an activation is, the latter is an activation that the
            model has not, and is let go.
    """
    modules = dict(module.named_modules())
    let_go = plan.tlu and not converted
    own = {f'{prefix}{key}' for key in module.state_dict()}
    for key in state_dict:
        if not key.endswith('.tau') or not key.startswith(prefix) or (
                key in own):
            continue
        path = key[len(prefix):].removesuffix('.tau')
        if path in modules or not let_go and HUNG.sub('', path) in modules:
            raise ConfigError(
                f'the checkpoint has a TLU threshold {key} but the model has '
                'none there; ' + (
                    'set model.norm_cfg to the norm it was trained with, or '
                    'give a checkpoint of the same architecture'
                    if plan.tlu else 'set model.norm_cfg.tlu=True, or give '
                    'a checkpoint trained with tlu=False'))


def _check_norms(places: list[Place], state_dict: dict,
                 plan: NormPlan) -> None:
    for place in places:
        bn_there = place.bn is not None and not plan.norm.batch
        if place.there and not bn_there:
            continue
        beside = place.own[:-1].rpartition('.')[0]
        if not place.beside or beside and not any(
                key.startswith(f'{beside}.') for key in state_dict):
            continue
        if not beside and not (place.expected or place.other):
            continue
        other = 'BN' if bn_there else place.other
        found = f'has {other} there' if other else 'has no norm there'
        raise ConfigError(
            f'the model has {plan.name} at {place.path} but the checkpoint '
            f'{found}; {_way_out(bn_there, plan)}')


def _check_not_elsewhere(places: list[Place], module: nn.Module,
                         state_dict: dict, prefix: str,
                         plan: NormPlan) -> None:
    """Refuse a list of layers that has the norms, but none where they are.

    One for each pyramid level, say, where the model's levels share theirs.
    """
    missing, fit = {}, set()
    for place in places:
        path = place.own[len(prefix):-1].rpartition('.')[0].rpartition('.')[0]
        if isinstance(module.get_submodule(path), nn.ModuleList):
            if place.there:
                fit.add(path)
            missing.setdefault(path, place.path)
    norm = re.compile(rf'\.{infer_abbr(plan.norm.layer)}\d*\.weight$')
    for path in sorted(missing.keys() - fit):
        other = next((key for key in state_dict if norm.search(key)
                      and key.startswith(f'{prefix}{path}.')), None)
        if other is not None:
            raise ConfigError(
                f'the checkpoint has {plan.name} at '
                f'{other.rpartition(".")[0]}, where the model has none, and '
                f'none at {missing[path]}, where it has; give a checkpoint '
                'of the same architecture')


def _way_out(bn_there: bool, plan: NormPlan) -> str:
    text = ('set model.norm_cfg to the norm it was trained with, or give a '
            f'checkpoint trained with {plan.name}')
    if bn_there and plan.scratch and plan.norm.from_bn is not None:
        text += ', or from_bn a number, to start from BN'
    return text


def _check_parameters(module: nn.Module, state_dict: dict, prefix: str,
                      at: str, plan: NormPlan) -> None:
    for path, norm in norms_of(module):
        if type(norm) is not plan.norm.layer:
            continue
        stem = f'{prefix}{path}.'
        there = {name for name in ARGUMENTS
                 if is_vector(state_dict.get(f'{stem}{name}'))}
        own = ARGUMENTS.keys() & norm.state_dict().keys()
        if not there or there == own:
            continue
        name = next(name for name in ARGUMENTS if name in there ^ own)
        mine, other = 'the model', 'the checkpoint'
        if name in there:
            mine, other = other, mine
        raise ConfigError(
            f'{mine} has {name} in the {plan.name} at '
            f'{f"{at}.{path}" if at else path} but {other} has none; '
            + _argument(plan, ARGUMENTS[name], name in there))


def _argument(plan: NormPlan, name: str, value: bool) -> str:
    if name not in inspect.signature(plan.norm.layer).parameters:
        return 'give a whole checkpoint'
    return (f'set model.norm_cfg.{name}={value}, or give a checkpoint '
            f'trained with {name}={not value}')


def _check_lost_norms(module: nn.Module, state_dict: dict, prefix: str,
                      at: str, plan: NormPlan) -> None:
    """Refuse weights of a layer that had a norm and would have none."""
    own = {f'{prefix}{key}' for key in module.state_dict()}
    abbr = infer_abbr(plan.norm.layer)
    for key in state_dict:
        stem, _, name = key.removesuffix('.weight').rpartition('.')
        if key in own or not re.fullmatch(rf'{abbr}\d*', name) or (
                not f'{stem}.'.startswith(prefix)):
            continue
        path = stem[len(prefix):]
        if _is_conv_without_norm(module, path, state_dict, stem):
            where = f'{at}.{path}' if at else path
            raise ConfigError(
                f'the checkpoint has {plan.name} at {where} but the model '
                'has no norm there; ' + (
                    'give a checkpoint of the same architecture'
                    if part_of(where) in plan.parts else
                    f'add {part_of(where)!r} to model.norm_cfg.parts'))


def _is_conv_without_norm(module: nn.Module, path: str, state_dict: dict,
                          stem: str) -> bool:
    """Whether a module has convolutions, some of them in the state dict."""
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return False
    convs = convs_of(owner, f'{stem}.')
    return any(f'{conv}.weight' in state_dict for conv in convs) and (
        not any(is_norm(child) for child in owner.children()))
