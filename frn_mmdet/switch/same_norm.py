"""Refuse weights whose norms are not those of the model.

mmengine only warns of keys that do not match, and the detector would run on
with norms that were never trained, or without what was learnt. Layers that
only one side has are no reason to refuse: a head of another detector, one
more convolution.
"""

import inspect
import re

import torch
from mmcv.cnn.bricks.norm import infer_abbr
from torch import nn

from ..errors import ConfigError
from .incoming import Incoming
from .marks import Marks, is_same_norm
from .norm_places import NormPlace, convs_of, is_vector, owner_and_name
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
# What weights say and may differ in: what their keys and buffers tell better
# (a missing threshold is a ReLU's), and how a norm is trained.
MAY_DIFFER = {'type', 'ws', 'tlu', 'from_bn', 'momentum', 'r_max', 'd_max',
              'warmup_steps', 'r_steps', 'd_steps'}
# Where place.py hangs a TLU on a module: ``tlu``, or ``tlu.0`` and so on.
HUNG = re.compile(r'(^|\.)tlu(\.\d+)?$')


def check_said(incoming: Incoming, marks: Marks) -> None:
    """Compare what weights say of themselves with what the model is.

    Args:
        incoming (Incoming): What is being loaded.
        marks (dict): Of the model, see :func:`~.marks.marks_of`.

    Raises:
        ConfigError: If, in a part that both have, one has standardized
            weights, another norm that is not converted, or another argument
            of it that changes what it computes.
    """
    plan = incoming.plan
    for part, own in marks.items():
        there = incoming.said.get(part, {})
        if there.get('ws', own['ws']) != own['ws'] and any(
                incoming.part(key) == part
                for key in incoming.own & incoming.state_dict.keys()):
            raise ConfigError(_ws_differs(part, there['ws']))
        differs = [name for name in own if name not in MAY_DIFFER
                   and there.get(name, own[name]) != own[name]]
        is_other = 'type' in own and incoming.is_of(part, plan.name) is False
        if not (differs or is_other) or not _has_norms(incoming, part):
            continue
        if not is_other:
            name = differs[0]
            raise ConfigError(
                f'the {part} of the checkpoint was trained with {name}='
                f'{there[name]} and the model has {own[name]}; set '
                f'model.norm_cfg.{name}={there[name]}, or give a checkpoint '
                f'trained with {name}={own[name]}')
        is_bn = is_same_norm(there['type'], 'BN')
        if not (is_bn and plan.converts):
            raise ConfigError(
                f'the {part} of the checkpoint has {there["type"]} and that '
                f'of the model has {plan.name}; {_way_out(is_bn, plan)}')


def _ws_differs(part: str, there: bool) -> str:
    trained, has = ('with', 'none') if there else ('without', 'it')
    return (f'the {part} of the checkpoint was trained {trained} weight '
            f'standardization and the model has {has}; set '
            f'model.norm_cfg.ws={there}, or give a checkpoint trained with '
            f'ws={not there}')


def _has_norms(incoming: Incoming, part: str) -> bool:
    """Whether a part's norms, or what stands beside them, would be loaded."""
    for path, norm in norms_of(incoming.module):
        if not incoming.plan.norm.is_layer(norm) or (
                part_of(incoming.where(path)) != part):
            continue
        prefix = incoming.prefix
        owner, _ = owner_and_name(incoming.module, path)
        keys = [f'{prefix}{path}.{name}' for name in norm.state_dict()] + [
            f'{conv}.weight' for conv in convs_of(
                incoming.module.get_submodule(owner),
                f'{prefix}{owner}.' if owner else prefix)]
        if any(key in incoming.state_dict for key in keys):
            return True
    return False


def check_same_norm(incoming: Incoming, places: list[NormPlace]) -> None:
    """Compare the keys of what is not converted with the model's norms.

    Args:
        incoming (Incoming): What is being loaded.
        places (list[NormPlace]): Of the norms in it.

    Raises:
        ConfigError: If, in a layer that both have, one has another norm or
            none, or a parameter of it that the other lacks.
    """
    _check_norms(incoming, places)
    _check_not_elsewhere(incoming, places)
    _check_parameters(incoming)
    _check_lost_norms(incoming)


def check_thresholds(incoming: Incoming, converted: bool) -> None:
    """Refuse thresholds of a TLU for which the model has no place.

    Args:
        incoming (Incoming): What is being loaded.
        converted (bool): Whether the state dict was trained with BN.

    Raises:
        ConfigError: If the layer that has the threshold is there, or what
            its TLU hangs on. Between detectors of one norm that has a TLU
            wherever an activation is, the latter is an activation that the
            model has not, and is let go.
    """
    modules = dict(incoming.module.named_modules())
    let_go = incoming.plan.tlu and not converted
    for key in incoming.state_dict:
        if not key.endswith('.tau') or key in incoming.own or (
                not key.startswith(incoming.prefix)):
            continue
        path = key[len(incoming.prefix):].removesuffix('.tau')
        if path in modules or not let_go and HUNG.sub('', path) in modules:
            raise ConfigError(
                f'the checkpoint has a TLU threshold {key} but the model has '
                'none there; ' + (
                    'set model.norm_cfg to the norm it was trained with, or '
                    'give a checkpoint of the same architecture'
                    if incoming.plan.tlu else 'set model.norm_cfg.tlu=True, '
                    'or give a checkpoint trained with tlu=False'))


def start_relus(incoming: Incoming) -> None:
    """Give, in place, TLUs a threshold of 0 where the weights had ReLUs.

    Those of the model may be of weights that were loaded before.
    """
    own = incoming.module.state_dict()
    for key in incoming.own - incoming.state_dict.keys():
        path = key.removesuffix('.tau')
        if path == key or incoming.said.get(
                incoming.part(key), {}).get('tlu', True):
            continue
        layer = HUNG.sub('', path)
        if layer == path and f'{path}.weight' not in incoming.own:
            layer = path.rpartition('.')[0]  # a ReLU's own place
        if any(other.startswith(f'{layer}.') for other
               in incoming.state_dict):
            incoming.state_dict[key] = torch.zeros_like(
                own[key[len(incoming.prefix):]], device='cpu')


def _check_norms(incoming: Incoming, places: list[NormPlace]) -> None:
    plan = incoming.plan
    for place in places:
        bn_there = place.bn is not None and not plan.norm.batch
        if place.there and not bn_there:
            continue
        around = place.around
        if not place.beside or around and not any(
                key.startswith(around) for key in incoming.state_dict):
            continue
        if not around and not (place.expected or place.other):
            continue
        other = 'BN' if bn_there else place.other
        found = f'has {other} there' if other else 'has no norm there'
        raise ConfigError(
            f'the model has {plan.name} at {place.path} but the checkpoint '
            f'{found}; {_way_out(bn_there, plan)}')


def _check_not_elsewhere(incoming: Incoming, places: list[NormPlace]) -> None:
    """Refuse a list of layers that has the norms, but none where they are.

    One for each pyramid level, say, where the model's levels share theirs.
    """
    prefix, plan = incoming.prefix, incoming.plan
    missing, fit = {}, set()
    for place in places:
        path = place.around[len(prefix):-1].rpartition('.')[0]
        if isinstance(incoming.module.get_submodule(path), nn.ModuleList):
            if place.there:
                fit.add(path)
            missing.setdefault(path, place.path)
    norm = re.compile(rf'\.{infer_abbr(plan.norm.layer)}\d*\.weight$')
    for path in sorted(missing.keys() - fit):
        other = next((key for key in incoming.state_dict if norm.search(key)
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


def _check_parameters(incoming: Incoming) -> None:
    plan = incoming.plan
    for path, norm in norms_of(incoming.module):
        if not plan.norm.is_layer(norm):
            continue
        stem = f'{incoming.prefix}{path}.'
        there = {name for name in ARGUMENTS
                 if is_vector(incoming.state_dict.get(f'{stem}{name}'))}
        own = ARGUMENTS.keys() & norm.state_dict().keys()
        if not there or there == own:
            continue
        name = next(name for name in ARGUMENTS if name in there ^ own)
        mine, other = 'the model', 'the checkpoint'
        if name in there:
            mine, other = other, mine
        raise ConfigError(
            f'{mine} has {name} in the {plan.name} at '
            f'{incoming.where(path)} but {other} has none; '
            + _argument(plan, ARGUMENTS[name], name in there))


def _argument(plan: NormPlan, name: str, value: bool) -> str:
    if name not in inspect.signature(plan.norm.layer).parameters:
        return 'give a whole checkpoint'
    return (f'set model.norm_cfg.{name}={value}, or give a checkpoint '
            f'trained with {name}={not value}')


def _check_lost_norms(incoming: Incoming) -> None:
    """Refuse weights of a layer that had a norm and would have none."""
    plan = incoming.plan
    abbr = infer_abbr(plan.norm.layer)
    for key in incoming.state_dict:
        stem, _, name = key.removesuffix('.weight').rpartition('.')
        if key in incoming.own or not re.fullmatch(rf'{abbr}\d*', name) or (
                not f'{stem}.'.startswith(incoming.prefix)):
            continue
        if _is_conv_without_norm(incoming, stem):
            where = incoming.where(stem[len(incoming.prefix):])
            raise ConfigError(
                f'the checkpoint has {plan.name} at {where} but the model '
                'has no norm there; ' + (
                    'give a checkpoint of the same architecture'
                    if part_of(where) in plan.parts else
                    f'add {part_of(where)!r} to model.norm_cfg.parts'))


def _is_conv_without_norm(incoming: Incoming, stem: str) -> bool:
    """Whether a module has convolutions, some of them in the state dict."""
    try:
        owner = incoming.module.get_submodule(stem[len(incoming.prefix):])
    except AttributeError:
        return False
    convs = convs_of(owner, f'{stem}.')
    return any(f'{conv}.weight' in incoming.state_dict for conv in convs) and (
        not any(is_norm(child) for child in owner.children()))
