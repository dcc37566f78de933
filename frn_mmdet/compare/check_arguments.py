"""The lists on the command line, refused before anything trains."""

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from ..switch.norms import parse_norm_cfg, read_norm
from .cell import Cell
from .grid import Grid

LONGEST = 200  # letters of a folder's name; file systems take 255


def check_numbers(batch_sizes: list[int], seeds: int,
                  lrs: list[float]) -> None:
    """Refuse numbers that cannot train, or that would train a cell twice.

    Args:
        batch_sizes (list[int]): Images per GPU.
        seeds (int): How many.
        lrs (list[float]): Learning rates.

    Raises:
        ConfigError: Naming the option and the value.
    """
    for batch in batch_sizes:
        if batch < 1:
            raise ConfigError(
                f'--batch-sizes: {batch} images per GPU cannot train, 1 is '
                'the least')
    if seeds < 1:
        raise ConfigError(f'--seeds: 1 is the least, got {seeds}')
    for lr in lrs:
        if not 0 < lr < math.inf:
            raise ConfigError(
                f'--lr: a learning rate is a number above 0, got {lr:g}')
    _refuse_twins('--batch-sizes', batch_sizes, lambda batch: batch,
                  'are the same')
    _refuse_twins('--lr', lrs, _name_of_lr, 'have one name, to '
                  '6 digits, and would share folders')


def check_norms(norms: list[str], gpus: int) -> None:
    """Refuse norms that cannot train, or that would train twice.

    Args:
        norms (list[str]): See :func:`read_norm`.
        gpus (int): Of a training.

    Raises:
        ConfigError: Naming the norm.
    """
    _refuse_twins('--norms', norms, _meaning, 'mean the same')
    _refuse_twins('--norms', norms, _name_of_norm, 'would share folders')
    for norm in norms:
        if len(_name_of_norm(norm)) > LONGEST:
            raise ConfigError(
                f'--norms: {norm[:40]}... is too long for a name of a folder')
        if parse_norm_cfg(read_norm(norm)).synced and gpus < 2:
            raise ConfigError(
                '--norms: SyncBN trains on 2 GPUs or more, here --gpus is '
                f'{gpus}; on one GPU it is BN')


def check_spelling(asked: Grid, begun: Grid) -> None:
    """Refuse what a folder has already, written in another way.

    Args:
        asked (Grid): What is to be trained there.
        begun (Grid): What was asked for before.

    Raises:
        ConfigError: Naming both.
    """
    for option, mine, others, keys in (
            ('--norms', asked.norms, begun.norms, (_meaning, _name_of_norm)),
            ('--lr', asked.lrs, begun.lrs, (_name_of_lr, ))):
        for one, other in itertools.product(mine, others):
            if one != other and any(key(one) == key(other) for key in keys):
                raise ConfigError(
                    f'{option}: {one} is {other} in the folder of --out; '
                    'write it like that')


def _refuse_twins(option: str, values: list, key: Callable[[Any], Any],
                  why: str) -> None:
    """Refuse two values with the same key."""
    for one, other in itertools.combinations(values, 2):
        if key(one) == key(other):
            raise ConfigError(
                f'{option}: {one} and {other} {why}; leave one of them out')


def _name_of_norm(norm: str) -> str:
    return Cell(norm, 1, 1., 0).name


def _name_of_lr(lr: float) -> str:
    return Cell('', 1, lr, 0).name


def _meaning(norm: str) -> tuple:
    """What a norm comes to, the layer's own defaults filled in."""
    plan = parse_norm_cfg(read_norm(norm))
    # Of mmcv's build_norm_layer.
    defaults = dict(requires_grad=True) | {
        name: parameter.default for name, parameter in
        inspect.signature(plan.norm.layer).parameters.items()}
    # scratch, since False, no pretrained weights, is 0 to Python.
    return (plan.name, defaults | plan.norm_cfg, plan.tlu, plan.ws,
            set(plan.parts), plan.scratch, plan.from_bn, plan.own_area)
