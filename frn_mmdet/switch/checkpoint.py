"""What happens to weights on their way into a switched detector."""

import logging
from functools import partial
from pathlib import Path

from mmengine.logging import print_log
from torch import nn

from ..errors import ConfigError
from .from_bn import convert, has_bn
from .frozen import unfreeze_misfits
from .marks import Marks, check_marks, mark
from .mend import pretrained_in
from .norms import NormPlan, is_norm, part_of
from .same_norm import check_same_norm, check_thresholds
from .sites import norms_of


def watch(model: nn.Module, plan: NormPlan, bn_eps: dict[str, float],
          marks: Marks) -> None:
    """Let each module that weights may be loaded into see to them first.

    The detector itself sees by its own method; this is for its parts, into
    which ``init_cfg`` loads, and for all in them that has a norm.
    A norm in a module with a checkpoint gets its reference statistics at once:
    who copies or wraps the model before its weights are loaded (mmengine's
    EMA, DistributedDataParallel) shall find them.

    Args:
        model (nn.Module): A detector, its norms switched.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
        bn_eps (dict[str, float]): See :func:`~.from_bn.convert`.
        marks (dict): See :func:`~.marks.marks_of`.
    """
    mark(model, marks)
    for path, module in model.named_modules():
        if path and part_of(path) not in plan.parts:
            continue
        checkpoint = pretrained_in(getattr(module, 'init_cfg', None))
        if checkpoint is not None and plan.converts:
            for _, norm in norms_of(module):
                if hasattr(norm, 'add_reference'):
                    norm.add_reference(plan.share)
        is_part = path and (checkpoint is not None or '.' not in path)
        if is_part:
            mark(module, marks)
        if is_part or path and not is_norm(module) and any(norms_of(module)):
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


def _see_to(module: nn.Module, state_dict: dict, prefix: str,
            metadata: dict, *args, at: str, plan: NormPlan,
            bn_eps: dict[str, float], marks: Marks) -> None:
    if prefix and ('.' in at or not has_bn(module, state_dict, prefix, at,
                                           plan)):
        return  # the detector has seen to it as a whole, or a part has
    check_marks(metadata, state_dict, prefix, at, marks)
    prepare_state_dict(module, state_dict, prefix, at, plan, bn_eps)


def prepare_state_dict(module: nn.Module, state_dict: dict, prefix: str,
                       at: str, plan: NormPlan,
                       bn_eps: dict[str, float]) -> None:
    """Convert, in place, what the plan can start from; refuse what it cannot.

    mmengine only warns of keys that do not match, and the model would run
    on with norms that were never trained.

    Args:
        module (nn.Module): A detector, its norms switched, or a part of it.
        state_dict (dict): What is being loaded into it. A part that is not
            in it (a backbone alone, say) is not looked at.
        prefix (str): Of the module's keys in ``state_dict``.
        at (str): Path of the module in the detector, '' for itself.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
        bn_eps (dict[str, float]): See :func:`~.from_bn.convert`.

    Raises:
        ConfigError: If the state dict has another norm, none, part of the
            norms, or a parameter of them that the model has not, or the
            reverse.
    """
    source = pretrained_in(getattr(module, 'init_cfg', None))
    if not at and not prefix:
        _check_something_fits(module, state_dict, 'the checkpoint',
                              'load_from', 'detector')
    elif source is not None and at:
        _check_something_fits(module, state_dict, source, f'{at}.init_cfg',
                              at)
    conversion = None
    if plan.converts:
        conversion = convert(module, state_dict, prefix, at, plan, bn_eps)
    if conversion is None:
        check_same_norm(module, state_dict, prefix, at, plan)
    check_thresholds(module, state_dict, prefix, plan,
                     converted=conversion is not None)
    for sentence in unfreeze_misfits(module, state_dict, prefix, at, plan):
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


def _check_something_fits(module: nn.Module, state_dict: dict, source: str,
                          key: str, what: str) -> None:
    """Refuse a checkpoint that is of something else."""
    layers = [name for name in module.state_dict()
              if name.endswith('.weight')]
    if state_dict and not any(name in state_dict for name in layers):
        raise ConfigError(
            f'{key}: nothing in {source} is of this {what}, its first key is '
            f'{next(iter(state_dict))}; does it need a prefix?')
