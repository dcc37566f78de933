"""Let a norm of the plan start from weights that were trained with BN."""

from collections import Counter
from typing import NamedTuple

import torch
from mmcv.cnn.bricks.norm import build_norm_layer, infer_abbr
from torch import nn

from ..errors import ConfigError
from ..layers.arguments import divisor
from ..layers.frn import EPS_L
from .incoming import Incoming
from .marks import forget_norms
from .norm_places import BN, NormPlace, places_of
from .norms import NormPlan, part_of

WAY_OUT = ('give a whole checkpoint of the same architecture, or set '
           'model.norm_cfg.from_bn=False to start from scratch')
BN_EPS = 1e-5  # PyTorch's and mmcv's, where a config says nothing


class Conversion(NamedTuple):
    """What became of the norms of a module.

    Attributes:
        said (str): What was converted, and how.
        warning (str): What starts fresh, or has to do without statistics;
            empty where nothing does.
    """

    said: str
    warning: str


def convert(incoming: Incoming, places: list[NormPlace]) -> Conversion | None:
    """Replace, in place, each BN of a state dict by a norm of the plan.

    Norms in whose place it has none are left alone: they start fresh.

    Args:
        incoming (Incoming): What is being loaded.
        places (list[NormPlace]): Of the norms in it.

    Returns:
        Conversion or None: None where the state dict was not trained with
        BN, or has the plan's norms already.

    Raises:
        ConfigError: If the BNs are of other channels or have no statistics,
            if they are in part of the places only, or if another norm is
            there. The state dict is then as it was.
    """
    state_dict, plan = incoming.state_dict, incoming.plan
    found = [place for place in places if place.bn]
    if not _is_of_bn(incoming, places, found):
        return None
    fresh = [place for place in places if not place.bn and not place.there]
    for place in found:
        _check_converts(place, plan)
        _check_state(place, state_dict, plan)
    _check_all_there(places, found, fresh, plan)
    _check_not_elsewhere(incoming, found, fresh)
    _check_all_used(incoming, found)
    device = state_dict[f'{found[0].bn}running_mean'].device if found else None
    of_no_map = [place for place in found
                 if is_of_no_map(place.bn, state_dict)]
    for place in found:
        _replace(state_dict, place.bn, place.own, place.norm, plan.share,
                 _eps_of(incoming, place), place.fits)
    for place in fresh:
        if getattr(place.norm, 'ref_mean', None) is not None:
            state_dict.update({
                f'{place.own}{key}': value for key, value
                in place.norm.fresh_statistics(device).items()})
    _start_thresholds(incoming, device)
    return Conversion(*_say(found, of_no_map, fresh, plan))


def has_bn(incoming: Incoming) -> bool:
    """Whether there is anything for :func:`convert` to do."""
    return incoming.plan.converts and _are_bns(
        incoming, [place for place in places_of(incoming) if place.bn])


def _are_bns(incoming: Incoming, found: list[NormPlace]) -> bool:
    # A BRN has BN's keys, so the names have to tell that these are BN's,
    # where the weights do not say it themselves.
    return any(not incoming.plan.norm.batch or place.bn != place.own
               or incoming.is_of(part_of(place.path), 'BN')
               for place in found)


def _is_of_bn(incoming: Incoming, places: list[NormPlace],
              found: list[NormPlace]) -> bool:
    """Whether weights were trained with BN, rather than with the plan's."""
    if found or incoming.plan.norm.batch:
        return _are_bns(incoming, found)
    return not any(place.there or place.other for place in places) and any(
        key.startswith(incoming.prefix) and key.endswith('.running_mean')
        for key in incoming.state_dict)


def is_of_no_map(bn: str, state_dict: dict) -> bool:
    """Whether statistics are placeholders: means of 0, variances of 1.

    In Caffe's weights (``open-mmlab://detectron2/resnet50_caffe``) they are
    folded into gamma and beta. Those of a detector that was trained with
    ``norm_eval=True`` from scratch were never anything else.
    """
    mean, var = (state_dict[f'{bn}running_{name}'] for name in ('mean', 'var'))
    return bool((mean == 0).all() and ((var - 1).abs() < 1e-3).all())


def first_share(share: float | None, of_no_map: bool) -> float | None:
    """0, which is BN itself, where nothing tells how large a map was."""
    return 0. if of_no_map and share is not None else share


def of_no_map_means(plan: NormPlan) -> str:
    """What becomes of BNs whose statistics are placeholders."""
    return ('the BN statistics are of no map (mean 0, variance 1), folded '
            "into gamma and beta as in Caffe's weights or never trained "
            f'(norm_eval=True), so {plan.name} ' + (
                'is right there while it is frozen, and off where it trains'
                if plan.share is None else
                'cannot tell how large the maps were and stays as BN with '
                'frozen statistics'))


def _say(found: list[NormPlace], of_no_map: list[NormPlace],
         fresh: list[NormPlace], plan: NormPlan) -> tuple[str, str]:
    misfits = [place for place in found if not place.fits]
    of_no_map = [place for place in of_no_map if place.fits]
    started = [place for place in found
               if place not in misfits and place not in of_no_map]
    said, warning = '', []
    if started:
        said = f'{_count(started)}: {plan.name} starts from BN' + (
            '' if plan.share is None else f', a = {plan.from_bn:g} (from_bn)')
    if of_no_map:
        warning.append(f'{_count(of_no_map)}: {of_no_map_means(plan)}')
    if misfits:
        warning.append(
            f"{_count(misfits)}: {plan.name} without BN's statistics, since "
            "a convolution before it is of another shape than the model's")
    if fresh:
        warning.append(f'{_count(fresh)}: fresh {plan.name}, since the '
                       'checkpoint has no norm there')
    return said, '. '.join(warning)


def rename_norms(state_dict: dict, plan: NormPlan,
                 keep_names: bool) -> dict[str, str]:
    """The paths of a state dict's BNs, and of the norms in their place.

    Args:
        state_dict (dict): Any.
        plan (NormPlan): What the BNs become.
        keep_names (bool): Whether a norm keeps the name of its BN, rather
            than the one that mmcv gives it.
    """
    paths = [key.removesuffix('.running_mean') for key in state_dict
             if key.endswith('.running_mean')]
    return {path: path if keep_names else mmcv_name(path, plan)
            for path in paths}


def mmcv_name(path: str, plan: NormPlan) -> str:
    """What mmcv calls a norm in the place of a BN: ``frn1`` for ``bn1``."""
    parent, dot, name = path.rpartition('.')
    if name.startswith(BN):
        name = f'{infer_abbr(plan.norm.layer)}{name.removeprefix(BN)}'
    return f'{parent}{dot}{name}'


def convert_by_name(state_dict: dict, plan: NormPlan, eps: float,
                    names: dict[str, str]) -> list[str]:
    """Replace, in place, BNs of a state dict, whatever model it is of.

    Args:
        state_dict (dict): Any.
        plan (NormPlan): What the BNs become.
        eps (float): Of the BNs.
        names (dict[str, str]): Their paths, and those of the norms in their
            place; see :func:`rename_norms`.

    Returns:
        list[str]: The BNs whose statistics are of no map, see
        :func:`of_no_map_means`.

    Raises:
        ConfigError: If the plan's groups do not divide the channels of one.
            The state dict is then as it was.
    """
    for old in names:
        channels = len(state_dict[f'{old}.running_mean'])
        groups = plan.norm_cfg.get('num_groups', 1)
        if channels % groups:
            raise ConfigError(
                f'num_groups={groups} does not divide the {channels} channels '
                f'of {old}, {divisor(channels, groups)} does')
    of_no_map = [path for path in names
                 if is_of_no_map(f'{path}.', state_dict)]
    forget_norms(state_dict)
    for old, new in names.items():
        channels = len(state_dict[f'{old}.running_mean'])
        _replace(state_dict, f'{old}.', f'{new}.',
                 build_norm_layer(plan.norm_cfg, channels)[1], plan.share,
                 eps)
    return of_no_map


def _replace(state_dict: dict, old: str, new: str, norm: nn.Module,
             share: float | None, eps: float, fits: bool = True) -> None:
    of_no_map = is_of_no_map(old, state_dict)
    bn = {key: state_dict.pop(f'{old}{key}')
          for key in ('weight', 'bias', 'running_mean', 'running_var',
                      'num_batches_tracked') if f'{old}{key}' in state_dict}
    mean, var = bn['running_mean'], bn['running_var']
    if fits:
        state = norm.state_from_bn(
            mean, var + eps, first_share(share, of_no_map))
    else:
        state = norm.fresh_statistics(mean.device)
        if of_no_map:  # gamma and beta have them
            bn.clear()
    # A BN may have been without gamma and beta; one of them alone is a loss.
    if not {'weight', 'bias'} & set(bn):
        bn.update(weight=torch.ones_like(mean), bias=torch.zeros_like(mean))
    state |= {key: bn[key] for key in ('weight', 'bias') if key in bn}
    state_dict.update({f'{new}{key}': value for key, value in state.items()})


def _start_thresholds(incoming: Incoming,
                      device: torch.device | None) -> None:
    """Start every TLU as the ReLU that a BN network has."""
    starts = dict(tau=0., eps_l=EPS_L)
    for key, value in incoming.module.state_dict().items():
        start = starts.get(key.rpartition('.')[2])
        key = f'{incoming.prefix}{key}'
        if start is not None and key not in incoming.state_dict:
            incoming.state_dict[key] = torch.full(
                value.shape, start, dtype=value.dtype, device=device)


def _eps_of(incoming: Incoming, place: NormPlace) -> float:
    """Return the eps that the BN of a place had.

    Of one that the model's code builds, and no config, that of the code: a
    value of BN leaves it, and the weights say the value. Else as they say, or
    of the innermost config that the place lies in.
    """
    if place.path in incoming.bn_eps:
        return incoming.bn_eps[place.path]
    part = part_of(place.path)
    if incoming.is_of(part, 'BN'):
        return incoming.said[part].get('eps', BN_EPS)
    inside = [path for path in incoming.bn_eps
              if f'{place.path}.'.startswith(f'{path}.')]
    return incoming.bn_eps[max(inside, key=len)] if inside else BN_EPS


def _check_converts(place: NormPlace, plan: NormPlan) -> None:
    """Refuse BN in the place of a norm that mmdet's code builds itself."""
    if not isinstance(place.norm, plan.norm.layer):
        raise ConfigError(
            f'the model has {plan.name} at {place.path} but the checkpoint '
            f'has BN there, and no config names that {plan.name}; give a '
            'checkpoint of the same architecture')


def _check_state(place: NormPlace, state_dict: dict, plan: NormPlan) -> None:
    if f'{place.bn}running_var' not in state_dict:
        raise ConfigError(
            f'the checkpoint has a BN at {place.bn[:-1]} without '
            f'running_var; {WAY_OUT}')
    there = len(state_dict[f'{place.bn}running_mean'])
    if there != len(place.norm.weight):
        raise ConfigError(
            f'{place.path}: {plan.name} has {len(place.norm.weight)} '
            f'channels, but the checkpoint has a BN of {there} there, so it '
            f'is of another architecture; {WAY_OUT}')


def _check_all_there(places: list[NormPlace], found: list[NormPlace],
                     fresh: list[NormPlace], plan: NormPlan) -> None:
    """Refuse a checkpoint that has a part of a part, or another norm.

    A head may well have a layer more than the checkpoint's, or one that had
    no norm there. A backbone is the checkpoint's or is not.
    """
    parts = {place.part for place in found}
    for place in fresh:
        if place.other:
            raise ConfigError(
                f'the model has {plan.name} at {place.path} but the '
                f'checkpoint has {place.other} there; leave '
                f'{part_of(place.part)!r} out of model.norm_cfg.parts, or '
                f'give a checkpoint trained with BN or {plan.name}')
    mixed = [place for place in places
             if place.there and not place.bn and place.part in parts]
    lost = [place for place in fresh if place.part in parts and (
        place.part == 'backbone' or place.expected)]
    for there, what in ((mixed, f'{plan.name} in place of BN'),
                        (lost, 'no BN')):
        if there:
            raise ConfigError(
                f'the checkpoint fits in part only: it has {what} at '
                f'{len(there)} of {len(places)} norms, {there[0].path} the '
                f'first; {WAY_OUT}')


def _check_not_elsewhere(incoming: Incoming, found: list[NormPlace],
                         fresh: list[NormPlace]) -> None:
    """Refuse norms in other places, such as one for each pyramid level."""
    parts = {place.part for place in fresh} - {place.part for place in found}
    for part in sorted(parts):
        stem = incoming.prefix + ('' if incoming.at else f'{part}.')
        norm = next((key for key in incoming.state_dict
                     if key.startswith(stem) and key.endswith('.running_mean')
                     and key not in incoming.own), None)
        if norm is not None:
            raise ConfigError(
                f'the checkpoint has a BN at {norm.rpartition(".")[0]}, '
                f'where the model has no {incoming.plan.name}, and none '
                f'where it has; leave {part_of(part)!r} out of '
                'model.norm_cfg.parts')


def _check_all_used(incoming: Incoming, found: list[NormPlace]) -> None:
    """Refuse a backbone of which the model has a part, such as fewer blocks.

    BNs beside the backbone's children (a classifier's head) are nobody's.
    """
    used = {place.bn for place in found}
    children = {_child(incoming, place.bn) for place in found
                if place.part == 'backbone'} - {None}
    for key in incoming.state_dict:
        stem, _, name = key.rpartition('.')
        if (name == 'running_mean' and f'{stem}.' not in used
                and key not in incoming.own
                and _child(incoming, key) in children):
            raise ConfigError(
                f'the checkpoint fits in part only: it has a BN at {stem}, '
                f'where the model has no {incoming.plan.name}; {WAY_OUT}')


def _child(incoming: Incoming, key: str) -> str | None:
    """The backbone's child that a key belongs to; None if it is elsewhere."""
    if not key.startswith(incoming.prefix):
        return None
    names = incoming.where(key[len(incoming.prefix):]).split('.')
    return names[1] if names[0] == 'backbone' else None


def _count(places: list[NormPlace]) -> str:
    """How many norms there are in each part."""
    counts = Counter(place.part for place in places)
    return ', '.join(f'{part} ({n})' for part, n in counts.items())
