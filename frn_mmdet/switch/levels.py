"""Give each level of a pyramid a batch norm of its own.

A head runs the same layers on each level. So in training each level is
normalised by its own statistics, and in test by one running average over all
of them, which is right for none. Which norms that concerns is a fact of the
data: one pass calls them several times, for maps of several sizes.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from ..layers.levels import LevelNorms, pass_levels
from .flow import Flow, NormCall
from .norms import part_of
from .place import replace_module


class Shared(NamedTuple):
    """A norm that the levels of a pyramid share.

    Attributes:
        path (str): Of the norm.
        host (str or None): Of the module one call of which has all of them;
            None: not known, or it is the detector itself.
        levels (int): How many there are.
    """

    path: str
    host: str | None
    levels: int


def shared_norms(flow: Flow, norms: Iterable[str]) -> list[Shared]:
    """Find the norms that levels share, in necks and heads.

    A backbone may run twice, for images of two sizes, and is to make the
    same of both.

    Args:
        flow (Flow): What a run of a detector has shown.
        norms (Iterable[str]): Paths of the norms to look at.
    """
    found = []
    for path in sorted(norms):
        calls = flow.calls.get(path, [])
        host, levels = _pass_of(calls)
        if levels < 2 or part_of(path) == 'backbone':
            continue
        if path in flow.apart or not all(
                host in dict(call.running) for call in calls):
            host = None
        found.append(Shared(path, host or None, levels))
    return found


def _pass_of(calls: list[NormCall]) -> tuple[str | None, int]:
    """The innermost module one call of which has maps of several sizes.

    Returns:
        tuple: Its path, and how many maps; None and 0 if there is none.
    """
    passes = defaultdict(list)
    for call in calls:
        for running in call.running:
            passes[running].append(call.shape[2:])
    levels = defaultdict(int)  # the most: one that failed had fewer
    for (path, _), sizes in passes.items():
        if len(set(sizes)) > 1:
            levels[path] = max(levels[path], len(sizes))
    host = None
    for path, _ in calls[0].running if calls else ():
        host = path if path in levels else host
    return host, levels[host]


def give_levels(model: nn.Module, shared: list[Shared]) -> None:
    """Let, in place, each level have a norm of its own.

    Args:
        model (nn.Module): A detector.
        shared (list[Shared]): Norms in it, whose hosts are known.
    """
    hosts = defaultdict(list)
    for path, host, levels in shared:
        norms = LevelNorms(model.get_submodule(path), levels)
        replace_module(model, path, norms)
        hosts[host].append(norms)
    for host, norms in hosts.items():
        pass_levels(model.get_submodule(host), norms)
