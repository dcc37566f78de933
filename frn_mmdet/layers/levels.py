"""A norm for each level of a pyramid, in the place of one for all."""

import copy
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn

from .fx import Proxy, one_call

# Of the passes that are going on, the norms that each LevelNorms has still to
# call. It ends with the pass and is a thread's own.
_TO_COME = ContextVar('norms to come', default={})  # noqa: B039 never changed


class LevelNorms(nn.ModuleList):
    """Norms of which each call takes the next one, from the first in a pass.

    A head runs the same layers on each level of a pyramid. Levels that share
    a batch norm are each normalised by their own statistics in training, but
    by one running average over all of them in test. So here the convolutions
    are shared and the norms are not.

    A pass is one call of the ``forward`` of the module that has all the
    levels: see :func:`pass_levels`. It may have fewer levels than there are
    norms.

    Args:
        norm (nn.Module): The one for all. The new ones are copies.
        levels (int): How many.

    Raises:
        RuntimeError: When called more often in a pass than there are norms,
            or outside of one.
    """

    def __init__(self, norm: nn.Module, levels: int) -> None:
        super().__init__(copy.deepcopy(norm) for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the map of the next level."""
        if isinstance(x, Proxy):
            return one_call(self, x)
        norms = _TO_COME.get().get(self)
        if norms is None:
            raise RuntimeError(
                f'{type(self[0]).__name__} of each level: nobody knows which '
                'level this is, outside of the forward of the module that '
                'has them all (activation checkpointing of a part of it?)')
        norm = next(norms, None)
        if norm is None:
            raise RuntimeError(
                f'{type(self[0]).__name__} of each level: there are '
                f'{len(self)} levels and this is one more')
        return norm(x)

    def spread(self, state_dict: dict, prefix: str) -> None:
        """Let, in place, each norm have what is there of one for all.

        Args:
            state_dict (dict): What is being loaded.
            prefix (str): Of that norm's keys in it.
        """
        for key in list(state_dict):
            name = key[len(prefix):]
            if not key.startswith(prefix) or '.' in name:
                continue
            value = state_dict.pop(key)
            for level in range(len(self)):  # a copy each: they may be assigned
                state_dict[f'{prefix}{level}.{name}'] = value.clone()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args,
                              **kwargs) -> None:
        self.spread(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def pass_levels(host: nn.Module, norms: list[LevelNorms]) -> None:
    """Let, in place, each call of a module's ``forward`` be a pass.

    Not by hooks: mmdet also calls ``head.forward``, which runs none.

    Args:
        host (nn.Module): It calls the norms, for each level in turn.
        norms (list[LevelNorms]): In it.
    """
    host.forward = partial(_pass, host.forward, norms)


def _pass(forward: Callable, norms: list[LevelNorms], *args,
          **kwargs) -> Any:
    token = _TO_COME.set(_TO_COME.get() | {each: iter(each)
                                           for each in norms})
    try:
        return forward(*args, **kwargs)
    finally:
        _TO_COME.reset(token)
