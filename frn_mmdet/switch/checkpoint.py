"""What happens to weights on their way into a switched detector."""

import logging
from functools import partial
from pathlib import Path

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import nn

from ..errors import ConfigError
from .from_bn import convert, has_bn
from .frozen import unfreeze_misfits
from .incoming import Incoming
from .marks import Marks, mark, read_marks
from .norm_places import places_of, spread_levels
from .norms import NormPlan, is_norm, part_of
from .same_norm import (
    check_said,
    check_same_norm,
    check_thresholds,
    start_relus,
)
from .sites import norms_of
from .stock_settings import pretrained_in, pretrained_item


def watch(model: nn.Module, plan: NormPlan, bn_eps: dict[str, float],
          marks: Marks) -> None:
    """Let each module that weights may be loaded into see to them first.

    The detector itself sees by its own method; this is for its parts, into
    which ``init_cfg`` loads, and for all in them that has a norm.
    A norm in a module with a checkpoint gets its reference statistics at once:
    who copies or wraps the model before its weights are loaded (mmengine's
    EMA, DistributedDataParallel) must find them.

    Args:
        model (nn.Module): A detector, its norms switched.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
        bn_eps (dict[str, float]): See :class:`~.incoming.Incoming`.
        marks (dict): See :func:`~.marks.marks_of`.
    """
    mark(model, '', marks)
    for path, module in model.named_modules():
        if path and part_of(path) not in plan.parts:
            continue
        checkpoint = pretrained_in(getattr(module, 'init_cfg', None))
        if checkpoint is not None and plan.converts:
            for _, norm in norms_of(module):
                if hasattr(norm, 'add_reference'):
                    norm.add_reference(plan.share)
        is_part = path and (checkpoint is not None or '.' not in path)
        if is_part or path and not is_norm(module) and any(norms_of(module)):
            mark(module, path, marks)
            module.register_load_state_dict_pre_hook(partial(
                _see_to, at=path, plan=plan, bn_eps=bn_eps, marks=marks))


def forget_missing(model: nn.Module) -> list[str]:
    """Let a model do without the files that its ``init_cfg`` cannot find.

    mmengine initialises a model also where it then resumes, and by then a
    file may be gone that the checkpoint makes needless.

    Args:
        model (nn.Module): A detector; parts of it lose their ``init_cfg``.

    Returns:
        list[str]: What was not found, ``part: path``.
    """
    missing = []
    for path, module in model.named_modules():
        file = pretrained_in(getattr(module, 'init_cfg', None))
        if file and '://' not in file and not (
                Path(file).expanduser().is_file()):
            missing.append(f'{path}: {file}')
            module.init_cfg = None
    return missing


def check_prefixed(model: nn.Module, plan: NormPlan, marks: Marks) -> None:
    """Look at what ``init_cfg`` loads of a larger checkpoint's ``prefix``.

    mmengine cuts the weights out, and what they say of themselves is lost on
    the way to the module. So such a file is read here before.

    Args:
        model (nn.Module): A detector, not initialised yet.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
        marks (dict): See :func:`~.marks.marks_of`.

    Raises:
        ConfigError: See :func:`~.same_norm.check_said`.
    """
    for path, module in model.named_modules():
        item = pretrained_item(getattr(module, 'init_cfg', None)) or {}
        if item.get('prefix') is None or path and (
                part_of(path) not in plan.parts):
            continue
        checkpoint = CheckpointLoader.load_checkpoint(
            item['checkpoint'], 'cpu', 'silent')
        if not isinstance(checkpoint, dict):
            continue  # mmengine says so
        state = checkpoint.get('state_dict', checkpoint)
        at = item['prefix'].removesuffix('.')
        metadata = getattr(state, '_metadata', {})
        said = read_marks(metadata.get(at, {})) or read_marks(
            metadata.get('', {}))
        weights = {key.removeprefix(f'{at}.'): value for key, value
                   in state.items() if key.startswith(f'{at}.')}
        check_said(Incoming(module, weights, '', path, plan, said=said),
                   marks)


def _see_to(module: nn.Module, state_dict: dict, prefix: str,
            metadata: dict, *args, at: str, plan: NormPlan,
            bn_eps: dict[str, float], marks: Marks) -> None:
    incoming = Incoming(module, state_dict, prefix, at, plan, bn_eps,
                        read_marks(metadata))
    if prefix and ('.' in at or not has_bn(incoming)):
        # The detector has seen to it as a whole, or a part has.
        check_said(incoming, marks)
    else:
        prepare(incoming, marks)


def prepare(incoming: Incoming, marks: Marks) -> None:
    """Convert, in place, what the plan can start from; refuse what it cannot.

    mmengine only warns of keys that do not match, and the model would run
    on with norms that were never trained.

    Args:
        incoming (Incoming): What is being loaded.
        marks (dict): Of the model, see :func:`~.marks.marks_of`.

    Raises:
        ConfigError: If the state dict has another norm, none, part of the
            norms, or a parameter of them that the model has not, or the
            reverse, or says that it is of another kind.
    """
    spread_levels(incoming)
    check_said(incoming, marks)
    source = pretrained_in(getattr(incoming.module, 'init_cfg', None))
    if not incoming.at and not incoming.prefix:
        _check_something_fits(incoming, 'the checkpoint', 'load_from',
                              'detector')
    elif source is not None and incoming.at:
        _check_something_fits(incoming, source, f'{incoming.at}.init_cfg',
                              incoming.at)
    places = places_of(incoming)
    conversion = None
    if incoming.plan.converts:
        conversion = convert(incoming, places)
    if conversion is None:
        check_same_norm(incoming, places)
        start_relus(incoming)
    check_thresholds(incoming, converted=conversion is not None)
    for sentence in unfreeze_misfits(incoming):
        print_log(sentence, 'current', logging.WARNING)
    if conversion is None:
        return
    source = source or 'the checkpoint'
    if conversion.said:
        print_log(f'{source} was trained with BN and is converted. '
                  f'{conversion.said}', 'current')
    if conversion.warning:
        print_log(f'{source} was trained with BN. {conversion.warning}',
                  'current', logging.WARNING)


def _check_something_fits(incoming: Incoming, source: str, key: str,
                          what: str) -> None:
    """Refuse a checkpoint that is of something else."""
    state_dict = incoming.state_dict
    if state_dict and not any(name.endswith('.weight') for name
                              in incoming.own & state_dict.keys()):
        raise ConfigError(
            f'{key}: nothing in {source} is of this {what}, its first key is '
            f'{next(iter(state_dict))}; does it need a prefix?')
