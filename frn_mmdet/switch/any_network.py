"""Switch the norms of a network that no config has built."""

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from ..layers.arguments import divisor
from .apply import Outcome, apply_plan
from .flow import Flow, failure, in_mode, watch_flow
from .from_bn import first_share, is_of_no_map, of_no_map_means
from .norm_act import split_norms
from .norms import NormPlan, is_norm, parse_norm_cfg
from .report import describe_stayed
from .sites import channels_of, norms_of
from .small_run import convolve_plainly, unseen

# Whose norms are over no map of two dimensions.
OTHER_NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm3d,
               nn.InstanceNorm1d, nn.InstanceNorm3d)


def switch_norms(model: nn.Module, norm_cfg: str | dict,
                 *example_inputs: Any) -> nn.Module:
    """Give any network of 2-D convolutions another norm, and its TLUs.

    A copy of the network runs on the example inputs, in test mode and, for
    the TLUs, in training mode, and its tensors are watched: so it need not
    be known by name, nor be traced. Each ReLU that acts on the output of a
    norm becomes a TLU: fused into the FRN, in the place of the module, or
    behind the block that returns what it gave.

    gamma and beta are kept. So are BN's statistics: BRN, BN and SyncBN have
    them, and a norm of one image (FRN, GN, ...) goes on from them, see
    ``from_bn``. In the place of a BN that was never trained it starts from
    scratch, unless ``norm_cfg`` says ``from_bn``. What stays as it was, such
    as a norm over maps of 1x1, which FRN would take the sign of, is named in
    a warning.

    Args:
        model (nn.Module): The network, as it was built, on any device.
            Changed in place.
        norm_cfg (str or dict): The name of a norm or a dict with ``type``,
            the layer's arguments, ``tlu``, ``ws`` and ``from_bn``, as a
            detector's (see :class:`~frn_mmdet.NormSwitch`), but no
            ``parts`` and no ``own_area``.
        *example_inputs (Any): What ``model`` is called with. Their values do
            not matter.

    Returns:
        nn.Module: The model; if it is itself a norm, the new one.

    Raises:
        ConfigError: If ``norm_cfg`` is wrong, if the network does not run,
            if an activation on a norm cannot become a TLU, or if there is no
            norm to switch. The model is then as it was.
    """
    if is_norm(model):
        return switch_norms(nn.Sequential(model), norm_cfg,
                            *example_inputs)[0]
    try:
        plan = _parse(norm_cfg)
        _check_not_switched(model)
        with _as_it_was_on_error(model):
            split_norms(model)
            _check_groups(model, plan)
            old = dict(norms_of(model))
            outcome = apply_plan(model, plan, partial(
                _watch, inputs=example_inputs))
            new = {path: model.get_submodule(path) for path in old}
            _check_switched(old, new, outcome, plan)
    except ConfigError as error:  # which has the name that a config has
        raise ConfigError(_as_argument(str(error))) from None
    is_asked = isinstance(norm_cfg, dict) and 'from_bn' in norm_cfg
    of_no_map = sum([_keep_state(old[path], new[path], plan, is_asked)
                     for path in old if new[path] is not old[path]])
    if of_no_map:
        print_log(f'{of_no_map} norms: {of_no_map_means(plan)}', 'current',
                  logging.WARNING)
    if outcome.stayed:
        print_log(_as_argument(describe_stayed(plan, outcome.stayed)),
                  'current', logging.WARNING)
    return model


def _parse(norm_cfg: str | dict) -> NormPlan:
    given = norm_cfg if isinstance(norm_cfg, dict) else {}
    if 'parts' in given:
        raise ConfigError(
            f'norm_cfg.parts: got {given["parts"]!r}, but a network that '
            'no config has built has none; call switch_norms on the module '
            'whose norms to switch, such as model.backbone')
    if 'own_area' in given:
        raise ConfigError(
            f'norm_cfg.own_area: got {given["own_area"]!r}, but only a '
            'detector of a config is told how large its images are; leave it '
            'out')
    return parse_norm_cfg(norm_cfg).of_any_network()


def _as_argument(text: str) -> str:
    return text.replace('model.norm_cfg', 'norm_cfg')


@contextmanager
def _as_it_was_on_error(model: nn.Module) -> Iterator[None]:
    """Undo, where it fails, what becomes of a model's modules and hooks."""
    before = [(vars(module), dict(vars(module)), {
        key: dict(value) for key, value in vars(module).items()
        if isinstance(value, dict)}) for module in model.modules()]
    try:
        yield
    except BaseException:
        for attributes, values, dicts in before:
            attributes.clear()
            attributes.update(values)
            for key, items in dicts.items():
                values[key].clear()  # the same dict: handles refer to it
                values[key].update(items)
        raise


def _check_not_switched(model: nn.Module) -> None:
    """Refuse an FRN with a TLU inside, which another norm has no place for."""
    for path, norm in norms_of(model):
        if getattr(norm, 'tau', None) is not None:
            raise ConfigError(
                f'{path}: {type(norm).__name__} has a TLU already; switch '
                'the network as it was before')


def _check_groups(model: nn.Module, plan: NormPlan) -> None:
    groups = plan.norm_cfg.get('num_groups', 1)
    channels = {path: channels_of(norm) for path, norm in norms_of(model)
                if not isinstance(norm, OTHER_NORMS)}
    for path, number in channels.items():
        if number % groups:
            most = divisor(math.gcd(*channels.values()), groups)
            raise ConfigError(
                f'norm_cfg.num_groups: {groups} does not divide the {number} '
                f'channels of {path}; {most} divides those of every norm')


def _watch(model: nn.Module, training: bool = False, *,
           inputs: tuple) -> Flow:
    """Watch a run; in test mode also of what runs in training only."""

    def run(model: nn.Module, flow: Flow) -> list[tuple[Any, bool]]:
        convolve_plainly(model)
        runs = [(_call(model, inputs), True)]
        if not training and unseen(model, flow):  # an auxiliary head
            with in_mode(model, training=True):
                runs.append((_call(model, inputs), True))
        return runs

    return watch_flow(model, run, training)


def _call(model: nn.Module, inputs: tuple) -> Any:
    try:
        return model(*(x.detach().clone() if isinstance(x, Tensor) else
                       copy.deepcopy(x) for x in inputs))
    except Exception as error:  # any: it is a model's own code
        mode = 'training' if model.training else 'test'
        raise ConfigError(
            'the network does not run on the example inputs in '
            + failure(f'{mode} mode', error)) from error


def _check_switched(old: dict, new: dict, outcome: Outcome,
                    plan: NormPlan) -> None:
    if all(new[path] is old[path] for path in old):
        path, reason = next(iter(outcome.stayed.items()))
        raise ConfigError(f'no norm could become {plan.name}; {path}: '
                          f'{reason}')


def _keep_state(old: nn.Module, new: nn.Module, plan: NormPlan,
                is_asked: bool) -> bool:
    """Let a norm go on from the one in whose place it is.

    Args:
        old (nn.Module): Any norm over a map.
        new (nn.Module): That of the plan. Changed in place.
        plan (NormPlan): What ``norm_cfg`` asks for.
        is_asked (bool): Whether it says ``from_bn``.

    Returns:
        bool: Whether the statistics of a trained BN are of no map.
    """
    state = old.state_dict()
    if plan.scratch:
        state = {key: value for key, value in state.items()
                 if key in ('weight', 'bias')}
    of_no_map = False
    if _has_statistics(old) and plan.converts and type(old) is not type(new):
        is_fresh = _is_fresh(old)
        of_no_map = not is_fresh and is_of_no_map('', old.state_dict())
        if is_asked or not is_fresh:
            state |= new.state_from_bn(
                old.running_mean, old.running_var + old.eps,
                first_share(plan.share, of_no_map))
    new.load_state_dict(state, strict=False)
    return of_no_map


def _has_statistics(norm: nn.Module) -> bool:
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def _is_fresh(bn: nn.Module) -> bool:
    """Whether nothing tells that a BN was trained; its gamma may be all 0."""
    return not bn.num_batches_tracked and (
        is_of_no_map('', bn.state_dict())) and (
        bn.weight is None or bool((bn.weight == bn.weight[0]).all())) and (
        bn.bias is None or bool((bn.bias == 0).all()))
