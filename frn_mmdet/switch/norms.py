"""The norms that ``model.norm_cfg`` may name, and what its value means."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import mmcv.cnn
import yaml
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from torch import nn

from ..errors import ConfigError
from ..layers import BRN, FRN, GFRN, GN, IN, LFRN, TLU, ConvWS, MapLayerNorm
from ..layers.arguments import LARGEST, is_number
from .norm_args import check_layer_args

PARTS = ('backbone', 'neck', 'head')

# How a norm starts where there are weights that were trained with BN: see
# docs/studies/pretrained.md for the choice.
FROM_BN = 10.

# Where the images of a batch run without the padding that others of it
# bring: in test, in training as well, nowhere. See docs/studies/padding.md.
OWN_AREA = ('test', True, False)


class Norm(NamedTuple):
    """One row of the table of norms.

    Attributes:
        layer (type): The layer that mmcv builds for ``type``.
        type (str): Its name in the registry.
        defaults (dict): Arguments that the switch adds, a string being
            enough of a value.
        tlu (bool): Whether a TLU follows unless the value says otherwise.
        batch (bool): Whether statistics are taken over the batch, so that
            running averages stand in for them at test.
        from_bn (float or None): Default of the value's ``from_bn``; None: it
            takes no number.
        one_channel (bool): Whether a statistic is of one channel of one
            image, so that of a map of one element its sign is left, or
            nothing.
        stock (type or None): PyTorch's layer of which ``layer`` is a
            subclass that computes the same: what a network of others has.
    """

    layer: type
    type: str
    defaults: dict = {}
    tlu: bool = False
    batch: bool = False
    from_bn: float | None = None
    one_channel: bool = False
    stock: type | None = None

    def is_layer(self, module: nn.Module) -> bool:
        """Whether a module is this norm, whoever built it."""
        return type(module) in (self.layer, self.stock)

    @property
    def has_learnable_eps(self) -> bool:
        """Whether the layer can be kept from being a sign function."""
        return 'learnable_eps' in inspect.signature(self.layer).parameters

    @property
    def goes_on_from_bn(self) -> bool:
        """Whether the layer says how it starts from a BN's state."""
        return hasattr(self.layer, 'state_from_bn')


# A norm more is a layer and a row: nothing else asks for its name.
NORMS = {
    'FRN': Norm(FRN, 'FRN', tlu=True, from_bn=FROM_BN, one_channel=True),
    'BN': Norm(nn.BatchNorm2d, 'BN', batch=True),
    'SyncBN': Norm(SyncBatchNorm, 'SyncBN', batch=True),
    'GN': Norm(GN, 'frn_mmdet.GN', dict(num_groups=32), from_bn=FROM_BN,
               stock=nn.GroupNorm),
    'LN': Norm(MapLayerNorm, 'frn_mmdet.LN', from_bn=FROM_BN),
    # PyTorch's default is no gamma and beta; the paper's norms have both.
    'IN': Norm(IN, 'frn_mmdet.IN', dict(affine=True), from_bn=FROM_BN,
               one_channel=True, stock=nn.InstanceNorm2d),
    'BRN': Norm(BRN, 'BRN', batch=True),
    'GFRN': Norm(GFRN, 'GFRN', dict(num_groups=32), tlu=True,
                 from_bn=FROM_BN),
    'LFRN': Norm(LFRN, 'LFRN', tlu=True, from_bn=FROM_BN),
}


# What keeps a norm from going on from weights that were trained with BN.
OBSTACLES = dict(
    ws=(True, 'weights that were trained with BN lose what standardization '
        'takes out of them'),
    affine=(False, "there is no place for BN's gamma and beta"),
    bias=(False, "there is no place for BN's beta"),
    track_running_stats=(True, 'in test mode it normalises by statistics of '
                         'its own'))


# What '+' in a norm's name asks for.
PLUS = {'TLU': dict(tlu=True), 'ReLU': dict(tlu=False), 'WS': dict(ws=True)}


@dataclass(frozen=True)
class NormPlan:
    """What one value of ``model.norm_cfg`` asks for.

    Attributes:
        name (str): Key of :data:`NORMS`.
        norm_cfg (dict): For mmcv's ``build_norm_layer``.
        tlu (bool): Whether activations that follow a norm become TLU.
        parts (tuple[str] or None): Which of :data:`PARTS` it holds for.
            None: for every norm of a network that has no such parts.
        from_bn (float, False or None): How the norm starts from weights
            that were trained with BN, see :attr:`converts`. False: no
            checkpoint of the config is loaded. None: the norm has no way.
        ws (bool): Whether the convolutions that feed a norm have
            standardized weights.
        own_area (bool or str): Whether the images of a batch run without the
            padding that others of it bring: one of :data:`OWN_AREA`.
    """

    name: str
    norm_cfg: dict
    tlu: bool
    parts: tuple | None
    from_bn: float | bool | None = None
    ws: bool = False
    own_area: bool | str = 'test'

    @property
    def label(self) -> str:
        """The norm, and whether it comes with standardized weights."""
        return f'{self.name}+WS' if self.ws else self.name

    @property
    def norm(self) -> Norm:
        """The row of the table."""
        return NORMS[self.name]

    def of_any_network(self) -> 'NormPlan':
        """The same, of a network that has no parts."""
        return replace(self, parts=None)

    def holds_for(self, path: str) -> bool:
        """Whether the module at a path is in one of the parts."""
        return self.parts is None or part_of(path) in self.parts

    def way_out(self, paths: Iterable[str], key: str) -> str:
        """What to do where modules cannot be as asked, for an error.

        Args:
            paths (Iterable[str]): Of the modules.
            key (str): What not to ask for instead, such as ``tlu``.
        """
        text = f'set model.norm_cfg.{key}=False'
        if self.parts is None:
            return text
        parts = ' and '.join(sorted({repr(part_of(path)) for path in paths}))
        return f'leave {parts} out of model.norm_cfg.parts, or {text}'

    @property
    def converts(self) -> bool:
        """Whether weights that were trained with BN are converted."""
        if self.scratch or self.ws or not self.norm.goes_on_from_bn:
            return False
        return self.norm.from_bn is None or self.from_bn is not None

    @property
    def share(self) -> float | None:
        """Of the norm's own statistics beside BN's: 1 / (1 + from_bn).

        What the layer and the kernel take. None where from_bn is no number.
        """
        if self.from_bn is None or self.scratch:
            return None
        return 1 / (1 + self.from_bn)

    @property
    def scratch(self) -> bool:
        """Whether the value asks for no pretrained weights at all."""
        return self.from_bn is False

    @property
    def synced(self) -> bool:
        """Whether the GPUs of a process group share statistics."""
        return self.norm.layer is SyncBatchNorm


# Convolutions with standardized weights: ours, and that of stock configs.
STANDARDIZED = (ConvWS, ConvWS2d)


def is_norm(module: nn.Module) -> bool:
    """As mmcv's ``is_norm``, but a TLU, which only looks like one, is none."""
    return mmcv.cnn.is_norm(module, exclude=TLU)


def part_of(path: str) -> str:
    """The part that a module path, or a key of a model config, is of.

    A teacher (``teacher_backbone``, ``teacher_model``, ...) is none: it stays
    as it was trained.
    """
    name = path.split('.', 1)[0]
    if name in ('backbone', 'neck'):
        return name
    return 'teacher' if name.startswith('teacher') else 'head'


def read_norm(text: str) -> dict:
    """The value of ``model.norm_cfg`` that a word on a command line means.

    Args:
        text (str): A norm, then perhaps what comes with it, then perhaps
            arguments: ``FRN``, ``BN+TLU``, ``FRN+ReLU+WS``,
            ``FRN:learnable_eps=true``, ``GN+WS:num_groups=8``.

    Returns:
        dict: For :func:`parse_norm_cfg`, which checks it.

    Raises:
        ConfigError: If it is not written like that.
    """
    name, *pairs = text.split(':')
    name, *more = name.split('+')
    value = dict(type=name)
    for word in more:
        if word not in PLUS:
            raise ConfigError(
                f'norm {text!r}: unknown {word!r} behind +; choose '
                f'{", ".join(PLUS)}')
        if PLUS[word].keys() & value.keys():
            raise ConfigError(f'norm {text!r}: {word!r} is one too many')
        value |= PLUS[word]
    for pair in pairs:
        key, equals, argument = pair.partition('=')
        if not equals:
            raise ConfigError(
                f'norm {text!r}: {pair!r} is not an argument; write '
                'GN:num_groups=8')
        if key in value:  # also type, which stands in front
            raise ConfigError(f'norm {text!r}: {key!r} stands there twice')
        value[key] = _read_argument(text, argument)
    return value


def _read_argument(text: str, argument: str) -> Any:
    try:
        value = yaml.safe_load(argument)
    except yaml.YAMLError as error:
        raise ConfigError(
            f'norm {text!r}: {argument!r} is no value') from error
    try:  # YAML takes 1e-4, without a point, for a word
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def parse_norm_cfg(value: str | dict) -> NormPlan:
    """Read a value of ``model.norm_cfg``.

    Args:
        value (str or dict): The name of a norm, or a dict with ``type`` (the
            name), the layer's own arguments, ``tlu`` and ``ws`` (bool),
            ``parts`` (one or several of backbone, neck, head), ``from_bn``
            (a number from 0 up, or False) and ``own_area`` (one of
            :data:`OWN_AREA`).

    Returns:
        NormPlan: The value with every default filled in.

    Raises:
        ConfigError: If the value is of another type, or the norm or an
            argument is unknown.
    """
    if isinstance(value, str):
        value = dict(type=value)
    if not isinstance(value, dict):
        raise ConfigError(
            'model.norm_cfg must be the name of a norm or a dict with '
            f'"type", got {value!r}')
    args = dict(value)
    name = args.pop('type', None)
    if not isinstance(name, str) or name not in NORMS:
        raise ConfigError(
            f'model.norm_cfg: unknown norm {name!r}; choose one of '
            f'{", ".join(NORMS)}')
    norm = NORMS[name]
    tlu = _check_bool('tlu', args.pop('tlu', norm.tlu))
    ws = _check_bool('ws', args.pop('ws', False))
    parts = _check_parts(args.pop('parts', PARTS))
    own_area = _check_own_area(name, norm, args.pop('own_area', 'test'))
    told = 'from_bn' in args
    from_bn = args.pop('from_bn', None)
    check_layer_args(name, norm.layer, args)
    obstacle = _obstacle(args | dict(ws=ws))
    if not told and not obstacle:
        from_bn = norm.from_bn
    from_bn = _check_from_bn(name, norm, from_bn, obstacle)
    norm_cfg = dict(type=norm.type, **{**norm.defaults, **args})
    return NormPlan(name, norm_cfg, tlu, parts, from_bn, ws, own_area)


def _check_bool(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(
            f'model.norm_cfg.{key} must be True or False, got {value!r}')
    return value


def _obstacle(args: dict) -> str | None:
    """What of a value keeps a norm from going on from BN, and why."""
    for key, (value, why) in OBSTACLES.items():
        if args.get(key) is value:
            return (f'with {key}={value} it takes no {{!r}}, only False '
                    f'(from scratch): {why}')
    return None


def _check_from_bn(name: str, norm: Norm, value: Any,
                   obstacle: str | None) -> float | bool | None:
    if value is False or value is None and (obstacle or norm.from_bn is None):
        return value
    if obstacle:
        raise ConfigError(
            f'model.norm_cfg.from_bn: {obstacle.format(value)}')
    if norm.from_bn is None:
        able = [n for n, row in NORMS.items() if row.from_bn is not None]
        raise ConfigError(
            f'model.norm_cfg.from_bn: {name} takes no {value!r}, only False '
            f'(from scratch); a number is for {", ".join(able)}')
    if not is_number(value) or value < 0:
        raise ConfigError(
            'model.norm_cfg.from_bn must be a number from 0 up to '
            f'{LARGEST:g}, or False for no pretrained weights, got {value!r}')
    return float(value)


def _check_own_area(name: str, norm: Norm, value: Any) -> bool | str:
    if type(value) not in (bool, str) or value not in OWN_AREA:
        raise ConfigError(
            f'model.norm_cfg.own_area: got {value!r}; choose one of '
            f'{", ".join(map(repr, OWN_AREA))}')
    if value is True and norm.batch:
        raise ConfigError(
            f'model.norm_cfg.own_area=True: {name} takes its statistics over '
            "the batch; choose 'test' or False")
    return value


def _check_parts(value: Any) -> tuple:
    parts = (value, ) if not isinstance(value, (list, tuple)) else tuple(value)
    if not parts or any(part not in PARTS for part in parts):
        raise ConfigError(
            f'model.norm_cfg.parts: got {value!r}; choose one or several of '
            f'{", ".join(PARTS)}')
    return parts
