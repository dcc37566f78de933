"""Let a norm of the plan start from weights that were trained with BN.

What is read is the place: a state dict that has a BN where the model has
FRN, ``layer1.0.bn2`` for ``layer1.0.frn2``, or the same index of a
Sequential. So no architecture has to be known by name.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from mmcv.cnn.bricks.norm import build_norm_layer, infer_abbr
from torch import nn

from ..errors import ConfigError
from ..layers import FRN
from .norms import NormPlan
from .sites import find_slots

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
        bn (str or None): What those of a BN start with that stands there.
        expected (bool): Whether the state dict has the layers beside it,
            without a bias that a norm would have made needless.
    """

    norm: nn.Module
    path: str
    own: str
    bn: str | None
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
    for slot in find_slots(module):
        if type(slot.norm) is not plan.norm.layer or slot.norm.weight is None:
            continue
        own = f'{prefix}{slot.path}'
        parent, dot, name = own.rpartition('.')
        beside = f'{parent}{dot}'
        renamed = f'{BN}{name.removeprefix(infer_abbr(plan.norm.layer))}'
        bn = next((f'{beside}{other}.' for other in (renamed, name)
                   if f'{beside}{other}.running_mean' in state_dict), None)
        owner = module.get_submodule(slot.path.rpartition('.')[0])
        places.append(
            Place(slot.norm, f'{at}.{slot.path}' if at else slot.path,
                  f'{own}.', bn, _layers_are_there(owner, state_dict, beside)))
    return places


def _layers_are_there(owner: nn.Module, state_dict: dict,
                      beside: str) -> bool:
    """Whether a state dict has the layers of a module, without biases."""
    layers = [f'{beside}{name}.' for name, child in owner.named_children()
              if isinstance(child, nn.modules.conv._ConvNd)]
    return any(f'{layer}weight' in state_dict for layer in layers) and not any(
        f'{layer}bias' in state_dict for layer in layers)


def convert(module: nn.Module, state_dict: dict, prefix: str, at: str,
            plan: NormPlan, bn_eps: dict[str, float]) -> list[str]:
    """Replace, in place, each BN of a state dict by a norm of the plan.

    Norms of parts in which it has no BN are left alone: they start fresh.

    Args:
        module (nn.Module): See :func:`places_of`, also for the next three.
        state_dict (dict): What is being loaded.
        prefix (str): Of its keys.
        at (str): Path of the module in the detector.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
        bn_eps (dict[str, float]): eps of the BNs that the config had, by
            path in the config; see :func:`~frn_mmdet.switch.config.bn_eps`.

    Returns:
        list[str]: What was done, a sentence each; empty where the state dict
        has no BN in the place of a norm.

    Raises:
        ConfigError: If the BNs are of other channels, or if they are in part
            of the places only. The state dict is then as it was.
    """
    places = places_of(module, state_dict, prefix, at, plan)
    found = [place for place in places if place.bn]
    # A BRN has BN's keys, so the names have to tell that these are BN's.
    if all(place.bn == place.own for place in found) and (
            plan.norm.batch or not found):
        return []
    for place in found:
        _check_channels(place, state_dict, plan)
    fresh = [place for place in places if not place.bn]
    _check_all_there(found, fresh, state_dict, plan)
    _check_all_used(found, state_dict, prefix, at, plan)
    for place in found:
        _replace(state_dict, place.bn, place.own, place.norm, plan,
                 _eps_of(place, bn_eps))
    _start_thresholds(module, state_dict, prefix)
    said = [f'{_count(found)}: {plan.name} starts from BN'
            + ('' if plan.from_bn is None else
               f', a = {plan.from_bn:g} (from_bn)')]
    if fresh:
        said.append(f'{_count(fresh)}: fresh {plan.name}, since the '
                    'checkpoint has no norm there')
    return said


def convert_by_name(state_dict: dict, plan: NormPlan, eps: float,
                    keep_names: bool) -> dict[str, str]:
    """Replace, in place, every BN of a state dict, whatever model it is of.

    Args:
        state_dict (dict): Any.
        plan (NormPlan): What the BNs become.
        eps (float): Of the BNs.
        keep_names (bool): Whether a norm keeps the name of its BN, rather
            than the one that mmcv gives it, ``frn1`` for ``bn1``.

    Returns:
        dict[str, str]: Paths of the BNs, and of the norms in their place.
    """
    paths = [key.removesuffix('.running_mean') for key in state_dict
             if key.endswith('.running_mean')]
    renamed = {}
    for path in paths:
        parent, dot, name = path.rpartition('.')
        if name.startswith(BN) and not keep_names:
            name = f'{infer_abbr(plan.norm.layer)}{name.removeprefix(BN)}'
        channels = len(state_dict[f'{path}.running_mean'])
        renamed[path] = f'{parent}{dot}{name}'
        _replace(state_dict, f'{path}.', f'{renamed[path]}.',
                 build_norm_layer(plan.norm_cfg, channels)[1], plan, eps)
    return renamed


def _replace(state_dict: dict, old: str, new: str, norm: nn.Module,
             plan: NormPlan, eps: float) -> None:
    bn = {key: state_dict.pop(f'{old}{key}', None)
          for key in ('weight', 'bias', 'running_mean', 'running_var',
                      'num_batches_tracked')}
    state_of = _frn_state if plan.norm.layer is FRN else _brn_state
    state = state_of(norm, bn, eps, plan)
    state_dict.update({f'{new}{key}': value for key, value in state.items()})


def _frn_state(norm: FRN, bn: dict, eps: float, plan: NormPlan) -> dict:
    return dict(
        _affine(norm, bn),
        ref_mean=bn['running_mean'].float(),
        ref_var=bn['running_var'].float() + eps,
        ref_eps=torch.tensor(plan.from_bn))


def _brn_state(norm: nn.Module, bn: dict, eps: float, plan: NormPlan) -> dict:
    # The limits of r and d are for statistics that have to settle first.
    return dict(
        _affine(norm, bn),
        running_mean=bn['running_mean'],
        running_var=(bn['running_var'] + (eps - norm.eps)).clamp(min=0),
        num_batches_tracked=torch.tensor(max(norm.r_steps, norm.d_steps)))


def _affine(norm: nn.Module, bn: dict) -> dict:
    """Gamma and beta; a BN may have been without."""
    return dict(
        weight=torch.ones_like(norm.weight)
        if bn['weight'] is None else bn['weight'],
        bias=torch.zeros_like(norm.bias)
        if bn['bias'] is None else bn['bias'])


def _start_thresholds(module: nn.Module, state_dict: dict,
                      prefix: str) -> None:
    """Start every TLU as the ReLU that a BN network has."""
    for key, value in module.state_dict().items():
        if key.rpartition('.')[2] in ('tau', 'eps_l'):
            start = value if key.endswith('eps_l') else torch.zeros_like(value)
            state_dict.setdefault(f'{prefix}{key}', start)


def _eps_of(place: Place, bn_eps: dict[str, float]) -> float:
    """Of the innermost config that the place lies in."""
    inside = [path for path in bn_eps
              if f'{place.path}.'.startswith(f'{path}.')]
    return bn_eps[max(inside, key=len)] if inside else BN_EPS


def _check_channels(place: Place, state_dict: dict, plan: NormPlan) -> None:
    there = len(state_dict[f'{place.bn}running_mean'])
    if there != len(place.norm.weight):
        raise ConfigError(
            f'{place.path}: {plan.name} has {len(place.norm.weight)} '
            f'channels, but the checkpoint has a BN of {there} there, so it '
            f'is of another architecture; {WAY_OUT}')


def _check_all_there(found: list[Place], fresh: list[Place], state_dict: dict,
                     plan: NormPlan) -> None:
    """Refuse a checkpoint that has a part of a part.

    A head may well have a layer more than the checkpoint's, or one that had
    no norm there. A backbone is the checkpoint's or is not.
    """
    parts = {place.part for place in found}
    lost = [place for place in fresh if place.part in parts and (
        place.part == 'backbone' or place.expected)]
    mixed = [place for place in fresh if f'{place.own}weight' in state_dict]
    for places, what in ((mixed, f'{plan.name} in place of BN'),
                         (lost, 'no BN')):
        if places:
            raise ConfigError(
                f'the checkpoint fits in part only: it has {what} at '
                f'{len(places)} of {len(found) + len(fresh)} norms, '
                f'{places[0].path} the first; {WAY_OUT}')


def _check_all_used(found: list[Place], state_dict: dict, prefix: str,
                    at: str, plan: NormPlan) -> None:
    """Refuse a backbone of which the model has a part, such as fewer blocks.

    BNs beside the backbone's children (a classifier's head) are nobody's.
    """
    used = {place.bn for place in found}
    children = {_child(place.bn, prefix, at) for place in found
                if place.part == 'backbone'} - {None}
    for key in state_dict:
        stem, _, name = key.rpartition('.')
        if (name == 'running_mean' and f'{stem}.' not in used
                and _child(key, prefix, at) in children):
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
