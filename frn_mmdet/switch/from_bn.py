"""Let a norm of the plan start from weights that were trained with BN.

What is read is the place: a state dict that has a BN where the model has
FRN, ``layer1.0.bn2`` for ``layer1.0.frn2``, or the same index of a
Sequential. So no architecture has to be known by name.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from mmcv.cnn.bricks.norm import build_norm_layer, infer_abbr
from torch import Tensor, nn

from ..errors import ConfigError
from ..layers import FRN
from ..layers.frn import EPS_L
from .norms import NORMS, NormPlan, part_of
from .sites import norms_of

WAY_OUT = ('give a whole checkpoint of the same architecture, or set '
           'model.norm_cfg.from_bn=False to start from scratch')
BN = infer_abbr(nn.BatchNorm2d)
BN_EPS = 1e-5  # PyTorch's and mmcv's, where a config says nothing


@dataclass(frozen=True)
class Place:
    """A norm of the plan, and where a state dict has it or should.

    Attributes:
        norm (nn.Module): The norm.
        path (str): Its path in the detector.
        own (str): What the keys of its own state start with.
        there (bool): Whether its own state is there.
        bn (str or None): What those of a BN start with that stands there.
        other (str or None): Another norm that stands there, by its name.
        beside (bool): Whether the state dict has convolutions that are
            beside it, or there are none.
        expected (bool): Whether it has them without a bias, which a norm
            would have made needless.
    """

    norm: nn.Module
    path: str
    own: str
    there: bool
    bn: str | None
    other: str | None
    beside: bool
    expected: bool

    @property
    def part(self) -> str:
        """The key of the detector's config that it belongs to."""
        return self.path.partition('.')[0]


def places_of(module: nn.Module, state_dict: dict, prefix: str, at: str,
              plan: NormPlan) -> list[Place]:
    """Find the places of a module's norms in a state dict.

    Args:
        module (nn.Module): A switched detector, or something in one.
        state_dict (dict): What is being loaded into the module.
        prefix (str): Of the module's keys in ``state_dict``.
        at (str): Path of the module in the detector, '' for itself.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
    """
    places = []
    for path, norm in norms_of(module):
        if type(norm) is not plan.norm.layer or norm.weight is None:
            continue
        own = f'{prefix}{path}'
        parent, dot, name = own.rpartition('.')
        beside = f'{parent}{dot}'
        postfix = name.removeprefix(infer_abbr(plan.norm.layer))
        bn = next((f'{beside}{other}.' for other in (f'{BN}{postfix}', name)
                   if f'{beside}{other}.running_mean' in state_dict), None)
        convs = convs_of(module.get_submodule(path.rpartition('.')[0]), beside)
        convs_there = any(f'{conv}.weight' in state_dict and not is_vector(
            state_dict[f'{conv}.weight']) for conv in convs)
        places.append(Place(
            norm=norm,
            path=f'{at}.{path}' if at else path,
            own=f'{own}.',
            there=any(is_vector(state_dict.get(f'{own}.{name}'))
                      for name in ('weight', 'running_mean')),
            bn=bn,
            other=_other_norm(state_dict, beside, postfix, plan),
            beside=convs_there or not convs,
            expected=convs_there and not any(
                f'{conv}.bias' in state_dict for conv in convs)))
    return places


def _other_norm(state_dict: dict, beside: str, postfix: str,
                plan: NormPlan) -> str | None:
    """The norm in a place by mmcv's names: ``gn1`` in that of ``frn1``."""
    for other, row in NORMS.items():
        stem = f'{beside}{infer_abbr(row.layer)}{postfix}.'
        if row.layer is not plan.norm.layer and f'{stem}weight' in state_dict:
            return other
    return None


def is_vector(value: Any) -> bool:
    """Whether it may be a norm's; a convolution's weight is none."""
    return isinstance(value, Tensor) and value.dim() == 1


def convs_of(owner: nn.Module, beside: str) -> list[str]:
    """The convolutions of a module, as a state dict names them."""
    return [f'{beside}{name}' for name, child in owner.named_children()
            if isinstance(child, nn.modules.conv._ConvNd)]


class Conversion(NamedTuple):
    """What became of the norms of a module.

    Attributes:
        said (str): What was converted, and how.
        warning (str): What starts fresh, or has to do without statistics;
            empty where nothing does.
    """

    said: str
    warning: str


def convert(module: nn.Module, state_dict: dict, prefix: str, at: str,
            plan: NormPlan, bn_eps: dict[str, float]) -> Conversion | None:
    """Replace, in place, each BN of a state dict by a norm of the plan.

    Norms in whose place it has none are left alone: they start fresh.

    Args:
        module (nn.Module): See :func:`places_of`, also for the next three.
        state_dict (dict): What is being loaded.
        prefix (str): Of its keys.
        at (str): Path of the module in the detector.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
        bn_eps (dict[str, float]): eps of the BNs that the config had, by
            path in the config; see :func:`~frn_mmdet.switch.config.bn_eps`.

    Returns:
        Conversion or None: None where the state dict was not trained with
        BN, or has the plan's norms already.

    Raises:
        ConfigError: If the BNs are of other channels or have no statistics,
            if they are in part of the places only, or if another norm is
            there. The state dict is then as it was.
    """
    places = places_of(module, state_dict, prefix, at, plan)
    found = [place for place in places if place.bn]
    if not _is_of_bn(places, found, state_dict, prefix, plan):
        return None
    fresh = [place for place in places if not place.bn and not place.there]
    for place in found:
        _check_state(place, state_dict, plan)
    _check_all_there(places, found, fresh, plan)
    own = {f'{prefix}{key}' for key in module.state_dict()}
    _check_not_elsewhere(found, fresh, state_dict, prefix, at, own, plan)
    _check_all_used(found, state_dict, prefix, at, own, plan)
    device = state_dict[f'{found[0].bn}running_mean'].device if found else None
    a = plan.from_bn
    if a is not None and _folded([p.bn for p in found], state_dict):
        a = math.inf
    for place in found:
        _replace(state_dict, place.bn, place.own, place.norm, a,
                 _eps_of(place, bn_eps))
    for place in fresh:
        if getattr(place.norm, 'ref_mean', None) is not None:
            state_dict.update({
                f'{place.own}{key}': value for key, value
                in place.norm.neutral_reference(device).items()})
    _start_thresholds(module, state_dict, prefix, device)
    return Conversion(*_say(found, fresh, a, plan))


def _is_of_bn(places: list[Place], found: list[Place], state_dict: dict,
              prefix: str, plan: NormPlan) -> bool:
    """Whether weights were trained with BN, rather than with the plan's."""
    if plan.norm.batch:
        # A BRN has BN's keys, so the names have to tell that these are BN's.
        return any(place.bn != place.own for place in found)
    if found:
        return True
    return not any(place.there or place.other for place in places) and any(
        key.startswith(prefix) and key.endswith('.running_mean')
        for key in state_dict)


def _folded(stems: list[str], state_dict: dict) -> bool:
    """Whether all statistics are placeholders.

    In Caffe's weights (``open-mmlab://detectron2/resnet50_caffe``) they are
    folded into gamma and beta: what is there are means of 0, variances of 1.
    """
    if not stems:
        return False
    means = torch.cat([state_dict[f'{stem}running_mean'] for stem in stems])
    variances = torch.cat([state_dict[f'{stem}running_var']
                           for stem in stems])
    return bool((means == 0).all() and ((variances - 1).abs() < 1e-3).all())


def _say(found: list[Place], fresh: list[Place], a: float | None,
         plan: NormPlan) -> tuple[str, str]:
    said, warning = '', []
    if found:
        said = f'{_count(found)}: {plan.name} starts from BN' + (
            '' if a is None else f', a = {a:g}' + (
                '' if a == math.inf else ' (from_bn)'))
    if a == math.inf:
        warning.append(
            f'{_count(found)}: its BN statistics are folded into gamma and '
            f'beta, so {plan.name} cannot tell how large the maps were and '
            'stays as BN with frozen statistics')
    if fresh:
        warning.append(f'{_count(fresh)}: fresh {plan.name}, since the '
                       'checkpoint has no norm there')
    return said, '. '.join(warning)


def convert_by_name(
        state_dict: dict, plan: NormPlan, eps: float,
        keep_names: bool) -> tuple[dict[str, str], float | None]:
    """Replace, in place, every BN of a state dict, whatever model it is of.

    Args:
        state_dict (dict): Any.
        plan (NormPlan): What the BNs become.
        eps (float): Of the BNs.
        keep_names (bool): Whether a norm keeps the name of its BN, rather
            than the one that mmcv gives it, ``frn1`` for ``bn1``.

    Returns:
        tuple: Paths of the BNs and of the norms in their place, a dict; and
        the a that FRN starts with, infinite where the statistics are folded
        into gamma and beta, None for a norm that has none.
    """
    paths = [key.removesuffix('.running_mean') for key in state_dict
             if key.endswith('.running_mean')]
    a = plan.from_bn
    if a is not None and _folded([f'{path}.' for path in paths], state_dict):
        a = math.inf
    renamed = {}
    for path in paths:
        parent, dot, name = path.rpartition('.')
        if name.startswith(BN) and not keep_names:
            name = f'{infer_abbr(plan.norm.layer)}{name.removeprefix(BN)}'
        channels = len(state_dict[f'{path}.running_mean'])
        renamed[path] = f'{parent}{dot}{name}'
        _replace(state_dict, f'{path}.', f'{renamed[path]}.',
                 build_norm_layer(plan.norm_cfg, channels)[1], a, eps)
    return renamed, a


def _replace(state_dict: dict, old: str, new: str, norm: nn.Module,
             a: float | None, eps: float) -> None:
    bn = {key: state_dict.pop(f'{old}{key}')
          for key in ('weight', 'bias', 'running_mean', 'running_var',
                      'num_batches_tracked') if f'{old}{key}' in state_dict}
    mean, var = bn['running_mean'], bn['running_var']
    if isinstance(norm, FRN):
        state = dict(
            ref_mean=mean.float(),
            ref_var=var.float() + eps,
            ref_eps=torch.tensor(a, device=mean.device))
    else:
        # The limits of r and d are for statistics that have to settle first.
        state = dict(
            running_mean=mean,
            running_var=(var + (eps - norm.eps)).clamp(min=0),
            num_batches_tracked=torch.tensor(
                max(norm.r_steps, norm.d_steps), device=mean.device))
    # A BN may have been without gamma and beta; one of them alone is a loss.
    if not {'weight', 'bias'} & set(bn):
        bn.update(weight=torch.ones_like(mean), bias=torch.zeros_like(mean))
    state |= {key: bn[key] for key in ('weight', 'bias') if key in bn}
    state_dict.update({f'{new}{key}': value for key, value in state.items()})


def _start_thresholds(module: nn.Module, state_dict: dict, prefix: str,
                      device: torch.device | None) -> None:
    """Start every TLU as the ReLU that a BN network has."""
    starts = dict(tau=0., eps_l=EPS_L)
    for key, value in module.state_dict().items():
        start = starts.get(key.rpartition('.')[2])
        if start is not None and f'{prefix}{key}' not in state_dict:
            state_dict[f'{prefix}{key}'] = torch.full(
                value.shape, start, dtype=value.dtype, device=device)


def _eps_of(place: Place, bn_eps: dict[str, float]) -> float:
    """Of the innermost config that the place lies in."""
    inside = [path for path in bn_eps
              if f'{place.path}.'.startswith(f'{path}.')]
    return bn_eps[max(inside, key=len)] if inside else BN_EPS


def _check_state(place: Place, state_dict: dict, plan: NormPlan) -> None:
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


def _check_all_there(places: list[Place], found: list[Place],
                     fresh: list[Place], plan: NormPlan) -> None:
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


def _check_not_elsewhere(found: list[Place], fresh: list[Place],
                         state_dict: dict, prefix: str, at: str,
                         own: set[str], plan: NormPlan) -> None:
    """Refuse norms in other places, such as one for each pyramid level."""
    parts = {place.part for place in fresh} - {place.part for place in found}
    for part in sorted(parts):
        stem = prefix if at else f'{prefix}{part}.'
        norm = next((key for key in state_dict if key.startswith(stem)
                     and key.endswith('.running_mean') and key not in own),
                    None)
        if norm is not None:
            raise ConfigError(
                f'the checkpoint has a BN at {norm.rpartition(".")[0]}, '
                f'where the model has no {plan.name}, and none where it has; '
                f'leave {part_of(part)!r} out of model.norm_cfg.parts')


def _check_all_used(found: list[Place], state_dict: dict, prefix: str,
                    at: str, own: set[str], plan: NormPlan) -> None:
    """Refuse a backbone of which the model has a part, such as fewer blocks.

    BNs beside the backbone's children (a classifier's head) are nobody's.
    """
    used = {place.bn for place in found}
    children = {_child(place.bn, prefix, at) for place in found
                if place.part == 'backbone'} - {None}
    for key in state_dict:
        stem, _, name = key.rpartition('.')
        if (name == 'running_mean' and f'{stem}.' not in used
                and key not in own and _child(key, prefix, at) in children):
            raise ConfigError(
                f'the checkpoint fits in part only: it has a BN at {stem}, '
                f'where the model has no {plan.name}; {WAY_OUT}')


def _child(key: str, prefix: str, at: str) -> str | None:
    """The backbone's child that a key belongs to; None if it is elsewhere."""
    if not key.startswith(prefix):
        return None
    path = f'{at}.{key[len(prefix):]}' if at else key[len(prefix):]
    names = path.split('.')
    return names[1] if names[0] == 'backbone' else None


def _count(places: list[Place]) -> str:
    """How many norms there are in each part."""
    counts = Counter(place.part for place in places)
    return ', '.join(f'{part} ({n})' for part, n in counts.items())
