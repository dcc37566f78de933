"""From a detector that was built with the plan's norms to a switched one."""

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

from mmcv.cnn.bricks.norm import build_norm_layer
from torch import nn

from ..errors import ConfigError
from ..layers.arguments import divisor
from .flow import Flow, Seen, is_plain_norm
from .keep_from_folding import keep_from_folding
from .levels import Shared, give_levels, shared_norms
from .norms import NormPlan, part_of
from .place import place_tlus, replace_module
from .sites import NormSite, channels_of, norm_name, norms_of, sites_of
from .small_run import flow_of
from .tlu_plan import (
    TLUSite,
    Unplaceable,
    acting_on,
    check_training,
    plan_tlus,
)
from .ws import standardize_convs

# These refuse maps of 3 dimensions, which PyTorch has other classes for.
OF_2D = (nn.BatchNorm2d, nn.InstanceNorm2d)


@dataclass
class Outcome:
    """What became of a detector.

    Attributes:
        sites (list[NormSite]): Those it has now.
        replaced (dict[str, str]): Norms that no config names and that are
            the plan's now: what they were, by path.
        stayed (dict[str, str]): Norms over a map that are not the plan's:
            why, by path.
        of_tokens (Counter): Norms over tokens, vectors or points, by name.
        failures (list[str]): Why some of it did not run on a small image.
        standardized (int): Convolutions with standardized weights.
        unfolded (list[str]): Norms that must not be folded, by path.
        flat (list[str]): Norms over maps of 1x1, of which little is left.
        bn_eps (dict[str, float]): eps of the BNs that were replaced, since
            no config names them, by path.
        levels (list[Shared]): Norms that levels of a pyramid shared, each of
            which has one of its own now.
        shared (list[str]): Those that they still share, by path.
    """

    sites: list[NormSite] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)
    stayed: dict[str, str] = field(default_factory=dict)
    of_tokens: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    standardized: int = 0
    unfolded: list[str] = field(default_factory=list)
    flat: list[str] = field(default_factory=list)
    bn_eps: dict[str, float] = field(default_factory=dict)
    levels: list[Shared] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)


def apply_plan(model: nn.Module,
               plan: NormPlan,
               watch: Callable[..., Flow] = flow_of) -> Outcome:
    """Switch the norms that no config names, and place the TLUs.

    Where the plan has parts, a config has named norms, and one that mmdet's
    code writes down may stay as it is. A network without parts has no
    config, and each of its norms is asked for.

    Args:
        model (nn.Module): A detector whose config had the plan's norms.
            Changed in place.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
        watch (callable): Runs a copy of the model, in training mode if
            ``training=True``, and gives the flow. Defaults to
            :func:`~.small_run.flow_of`, which makes up inputs.

    Returns:
        Outcome: For the report.

    Raises:
        ConfigError: If a norm of the plan is over something else than a map,
            or is called as another norm is, or if an activation on one
            cannot become a TLU, or if there is no norm to switch. The model
            is then as it was.
    """
    outcome = Outcome()
    flow = watch(model)
    norms = {path: norm for path, norm in norms_of(model)
             if plan.holds_for(path)}
    own = {path for path, norm in norms.items()
           if plan.parts and plan.norm.is_layer(norm)}
    _check_maps(model, own, flow, plan)
    new = _replacements(model, norms, own, flow, plan, outcome)
    if not (own or new or outcome.stayed):
        raise ConfigError(
            f'model.norm_cfg: {type(model).__name__} has no norm over a map '
            f'in {", ".join(plan.parts or ["it"])} that could become '
            f'{plan.name}')
    sites = []
    if plan.tlu and (own or new):
        asked = own if plan.parts else own | new.keys()
        _check_seen(asked, flow, plan)
        training = watch(model, training=True)
        _check_known(asked, training, plan)
        for path in new.keys() & training.unknown.keys():
            del new[path]
            outcome.stayed[path] = training.unknown[path]
        flow.used |= training.used
        sites = _plan_or_leave(model, plan, flow, training, asked, new,
                               outcome)
    if plan.ws:
        outcome.standardized = standardize_convs(model, plan, flow,
                                                 own | new.keys())
    for path, norm in new.items():
        if isinstance(norms[path], nn.BatchNorm2d):
            outcome.bn_eps[path] = norms[path].eps
        replace_module(model, path, norm)
    place_tlus(model, sites)
    outcome.replaced = {path: norm_name(norms[path]) for path in sorted(new)}
    outcome.of_tokens.update(
        norm_name(norm) for path, norm in norms.items()
        if path not in own | new.keys() | outcome.stayed.keys())
    outcome.failures = flow.failures
    if plan.norm.batch and plan.parts:
        shared = shared_norms(flow, own | new.keys())
        outcome.levels = [each for each in shared if each.host is not None]
        outcome.shared = [each.path for each in shared if each.host is None]
        give_levels(model, outcome.levels)
    if new or sites or plan.ws or outcome.levels:
        flow = watch(model)
    if plan.norm.batch:
        outcome.unfolded = keep_from_folding(model, flow)
    outcome.sites = sites_of(model, flow)
    if plan.tlu:
        _check_nothing_left(plan, flow, _with_levels(own | new.keys(),
                                                     outcome.levels))
    if _loses_one_element(plan):
        outcome.flat = sorted(
            path for path in (own | new.keys()) & flow.norms.keys()
            if _is_flat(flow.norms[path].shape))
    return outcome


def _check_maps(model: nn.Module, own: set[str], flow: Flow,
                plan: NormPlan) -> None:
    for path in sorted(own & flow.norms.keys()):
        if path in flow.apart:
            continue  # a map that was made up; what failed is said below
        seen = flow.norms[path]
        wrong = _wrong_call(seen, model.get_submodule(path))
        if wrong:
            raise ConfigError(f'{path}: {plan.name} {wrong}; leave '
                              f'{part_of(path)!r} out of model.norm_cfg.parts')


def _wrong_call(seen: Seen, norm: nn.Module) -> str | None:
    """What tells that the model is made for another norm; None if nothing."""
    if len(seen.shape) < 4:
        return ('would normalise tokens or points of shape '
                f'{seen.shape}, not a map')
    strange = seen.keywords - inspect.signature(norm.forward).parameters.keys()
    if strange:
        return ('would be called with what only another norm takes: '
                f'{", ".join(sorted(strange))}')
    if seen.shape[1] != channels_of(norm):
        return (f'has {channels_of(norm)} channels and would get a map of '
                f'shape {seen.shape}: these are not its second dimension')
    return None


def _check_seen(own: set[str], flow: Flow, plan: NormPlan) -> None:
    """Refuse to guess what follows a norm, where not everything has run."""
    _check_known(own, flow, plan)
    unseen = sorted(own - flow.norms.keys() | own & flow.escaped)
    if own and flow.failures and not unseen:
        unseen = sorted(own)
    if unseen:
        reason = f' ({flow.failures[0]})' if flow.failures else ''
        raise ConfigError(
            f'{unseen[0]}: it, or what its output goes to, did not run when '
            f'the detector was tried on a small image{reason}, so nobody '
            f'knows what activation follows {plan.name}; '
            + plan.way_out(unseen[:1], 'tlu'))


def _check_known(own: set[str], flow: Flow, plan: NormPlan) -> None:
    for path in sorted(own & flow.unknown.keys()):
        raise ConfigError(
            f'{path}: {flow.unknown[path]}, so nobody knows what activation '
            f'follows {plan.name}; ' + plan.way_out([path], 'tlu'))


def _replacements(model: nn.Module, norms: dict, own: set[str], flow: Flow,
                  plan: NormPlan, outcome: Outcome) -> dict[str, nn.Module]:
    """The plan's norm for each over a map that no config names."""
    new = {}
    for path in sorted(norms.keys() - own):
        norm = norms[path]
        seen = flow.norms.get(path)
        if type(norm) is nn.LayerNorm or seen and len(seen.shape) < 4 and (
                path not in flow.apart):
            continue  # over tokens, vectors or points
        if not is_plain_norm(norm) or norm._forward_hooks:
            outcome.stayed[path] = (
                f'{type(norm).__name__} does more than normalise')
        elif seen is None or path in flow.escaped | flow.apart:
            outcome.stayed[path] = 'it did not run' + ''.join(
                f' ({failure})' for failure in flow.failures[:1])
        elif len(seen.shape) > 4 and issubclass(
                plan.norm.layer, OF_2D):
            outcome.stayed[path] = (
                f'its maps have {len(seen.shape) - 2} dimensions, and '
                f'{plan.name} is of those with 2')
        elif path in flow.unknown and plan.tlu and plan.parts:
            outcome.stayed[path] = flow.unknown[path]
        elif _is_flat(seen.shape) and _loses_one_element(plan):
            outcome.stayed[path] = 'its maps are 1x1' + (
                f', for which {plan.name} has learnable_eps=True'
                if plan.norm.has_learnable_eps else '')
        elif channels_of(norm) % plan.norm_cfg.get('num_groups', 1):
            channels, groups = channels_of(norm), plan.norm_cfg['num_groups']
            outcome.stayed[path] = (
                f'num_groups={groups} does not divide its {channels} '
                f'channels, {divisor(channels, groups)} does')
        else:
            new[path] = _like(norm, model, plan)
    return new


def _loses_one_element(plan: NormPlan) -> bool:
    return plan.norm.one_channel and not plan.norm_cfg.get('learnable_eps')


def _like(norm: nn.Module, model: nn.Module, plan: NormPlan) -> nn.Module:
    new = build_norm_layer(plan.norm_cfg, channels_of(norm))[1]
    old = list(norm.parameters())
    like = next(chain(old, model.parameters()), None)
    if like is not None and not like.is_meta:
        new.to(like.device, like.dtype)
    trains = not old or any(p.requires_grad for p in old)
    return new.requires_grad_(trains).train(norm.training)


def _plan_or_leave(model: nn.Module, plan: NormPlan, flow: Flow,
                   training: Flow, asked: set[str], new: dict,
                   outcome: Outcome) -> list[TLUSite]:
    """The sites; where a TLU has no place, a norm of mmdet's code stays."""
    while True:
        try:
            norms = asked | new.keys()
            sites = plan_tlus(model, plan, flow, norms)
            check_training(model, plan, sites, training, norms)
            return sites
        except Unplaceable as error:
            loose = error.norms & new.keys()
            if not loose or error.norms & asked:
                raise ConfigError(str(error)) from None
            for path in sorted(loose):
                del new[path]
                outcome.stayed[path] = (
                    f'{str(error).partition(":")[0]} acts on it and cannot '
                    'become a TLU')


def _with_levels(norms: set[str], levels: list[Shared]) -> set[str]:
    """The norms, of each level where it has one of its own."""
    each = {one.path: range(one.levels) for one in levels}
    return {f'{path}.{level}' if path in each else path for path in norms
            for level in each.get(path, (None, ))}


def _check_nothing_left(plan: NormPlan, flow: Flow, norms: set[str]) -> None:
    """Look again: every activation on a norm must be a TLU now."""
    for path in acting_on(norms, flow):
        raise ConfigError(
            f'{path}: still acts on a {plan.name} after its TLU was placed; '
            'please report it, and set tlu=False meanwhile')


def _is_flat(shape: tuple) -> bool:
    return set(shape[2:]) == {1}
