"""Check the arguments of a norm layer that ``model.norm_cfg`` gives.

A layer takes whatever it is given and fails, or computes nonsense, at the
first image. What a value should be is what the layer's signature says.
"""

import inspect
import typing
from numbers import Integral
from typing import Any

from ..errors import ConfigError
from ..layers.arguments import is_number

# What a layer takes that is not the config's to say: its channels, what the
# switch decides at each site, and where the layer lives.
NOT_ARGS = ('num_features', 'num_channels', 'tlu', 'share', 'process_group',
            'device', 'dtype')
# What the switch takes of a value beside them.
OF_THE_SWITCH = ('tlu', 'ws', 'parts', 'from_bn', 'own_area')
KINDS = {bool: 'True or False', int: 'a whole number', float: 'a number'}
# What is asked of a value, and whether it is so.
RANGES = dict(
    eps=(' from 0 up', lambda x: x >= 0),
    momentum=(' from 0 to 1', lambda x: 0 <= x <= 1),
    num_groups=(' from 1 up', lambda x: x >= 1))


def check_layer_args(name: str, layer: type, args: dict) -> None:
    """Refuse an argument that the layer would not take, or could not use.

    A dict in a child config merges into a dict of its base, so a stray
    argument is often the base's.

    Args:
        name (str): Of the norm, for the message.
        layer (type): Its class.
        args (dict): Arguments of the config.

    Raises:
        ConfigError: If an argument is unknown, or its value of another type
            or out of range.
    """
    known = {key: parameter.annotation for key, parameter in
             inspect.signature(layer).parameters.items()
             if key not in NOT_ARGS}
    known['requires_grad'] = bool  # mmcv's build_norm_layer takes it
    for key, value in args.items():
        if key not in known:
            raise ConfigError(
                f'model.norm_cfg: {name} takes no {key!r}; it takes '
                f'{", ".join((*known, *OF_THE_SWITCH))} (a dict merges into '
                'the dict of a base config unless it has _delete_=True)')
        _check_value(key, value, known[key])


def _check_value(key: str, value: Any, annotation: Any) -> None:
    kinds = typing.get_args(annotation) or (annotation, )
    kind = next((kind for kind in kinds if kind in KINDS), None)
    if kind is None or value is None and type(None) in kinds:
        return
    range_, is_in_range = RANGES.get(key, ('', lambda x: True))
    if not _is_of(kind, value) or not is_in_range(value):
        raise ConfigError(
            f'model.norm_cfg.{key} must be {KINDS[kind]}{range_}, got '
            f'{value!r}')


def _is_of(kind: type, value: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return is_number(value) and (kind is float or isinstance(value, Integral))
