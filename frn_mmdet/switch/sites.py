"""Find the norm sites of a built model, and what activation follows each.

Which activation follows a norm is decided by a ``forward``, so that is what
is read: the table below holds, for each ``forward`` known here, a function
that tells its sites. A subclass that inherits the ``forward`` is known too;
one that writes its own is not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mmcv.cnn import is_norm
from torch import nn

from ..layers import TLU
from .norms import NORMS

ACTIVATIONS = (TLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU,
               nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
               nn.Hardswish, nn.Softplus, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class NormSite(NamedTuple):
    """A place where a norm or the activation after a residual add stands.

    Attributes:
        path (str): Of the norm in the model; of the block for an add.
        norm (str or None): Name in ``model.norm_cfg``, else the class. None
            for the activation after a residual add.
        activation (str or None): Class of the activation that follows.
        channels (int): Channels of the map there.
    """

    path: str
    norm: str | None
    activation: str | None
    channels: int


@dataclass
class Slot:
    """A site, with the modules that placing an activation needs.

    Attributes:
        path (str): See :class:`NormSite`.
        norm (nn.Module or None): The norm; None after a residual add.
        channels (int): Channels of the map there.
        owner (nn.Module or None): The module that has the activation.
        act_name (str or None): The owner's name for it; None: no activation.
        host (nn.Module or None): Where the owner uses one activation module
            at several sites, the module that can carry this site's own: the
            next one the data meets, or the block itself after its add.
        closed (bool): Whether what follows the norm is known.
    """

    path: str
    norm: nn.Module | None
    channels: int
    owner: nn.Module | None = None
    act_name: str | None = None
    host: nn.Module | None = None
    closed: bool = True

    @property
    def activation(self) -> nn.Module | None:
        """The module that acts here, TLU included; None if there is none."""
        if getattr(self.norm, 'tau', None) is not None:
            return self.norm
        if isinstance(getattr(self.host, 'tlu', None), TLU):
            return self.host.tlu
        act = getattr(self.owner, self.act_name) if self.act_name else None
        return None if isinstance(act, nn.Identity) else act


def norm_sites(model: nn.Module) -> list[NormSite]:
    """List the norms of a model and the activation after each.

    Activations after a residual add are listed too, without a norm;
    activations that have no norm (FC layers, mask deconv) are not.

    Args:
        model (nn.Module): Any model, switched or not.

    Returns:
        list[NormSite]: In the order the model is built, roughly the order
        the data takes.
    """
    return [describe(slot) for slot in find_slots(model)]


def describe(slot: Slot) -> NormSite:
    """The public view of a slot."""
    act = slot.activation
    act_name = None
    if act is not None:
        act_name = 'TLU' if act is slot.norm else type(act).__name__
    norm = None if slot.norm is None else norm_name(slot.norm)
    return NormSite(slot.path, norm, act_name, slot.channels)


def norm_name(norm: nn.Module) -> str:
    """The layer's name in ``model.norm_cfg``, or its class if it has none."""
    for name, row in NORMS.items():
        if type(norm) is row.layer:
            return name
    return type(norm).__name__


def find_slots(model: nn.Module) -> list[Slot]:
    """All slots of a model, each norm once."""
    slots = {}
    for path, module in model.named_modules():
        for slot in _read(path, module):
            key = (path, 'add') if slot.norm is None else id(slot.norm)
            if key not in slots or slot.closed:
                slots[key] = slot
    for path, module in model.named_modules():
        if is_norm(module) and id(module) not in slots:
            slots[id(module)] = Slot(
                path, module, channels_of(module), closed=False)
    return list(slots.values())


def channels_of(norm: nn.Module) -> int:
    """Channels of any norm layer; the last dimension of a LayerNorm."""
    for name in ('num_features', 'num_channels'):
        if hasattr(norm, name):
            return getattr(norm, name)
    return norm.normalized_shape[-1]


def read_key(module: nn.Module) -> str:
    """What the table of readers is keyed by: the module's ``forward``."""
    forward = type(module).forward
    return f'{forward.__module__}.{forward.__qualname__}'


def _read(path: str, module: nn.Module) -> Iterator[Slot]:
    reader = READERS.get(read_key(module))
    if reader is not None:
        yield from reader(path, module)


def _slot(path: str, owner: nn.Module, norm_attr: str, **kwargs) -> Slot:
    norm = getattr(owner, norm_attr)
    # ``norm1`` is a property of mmdet's blocks; the path has the real name.
    name = getattr(owner, f'{norm_attr}_name', norm_attr)
    return Slot(_join(path, name), norm, channels_of(norm), owner, **kwargs)


def _join(path: str, name: str) -> str:
    return f'{path}.{name}' if path else name


def _read_sequential(path: str, module: nn.Sequential) -> Iterator[Slot]:
    children = list(module.named_children())
    for i, (name, child) in enumerate(children):
        if not is_norm(child):
            continue
        follower = children[i + 1] if i + 1 < len(children) else None
        is_act = follower and isinstance(follower[1],
                                         ACTIVATIONS + (nn.Identity, ))
        yield _slot(
            path,
            module,
            name,
            act_name=follower[0] if is_act else None,
            closed=follower is not None)


def _read_conv_module(path: str, module: nn.Module) -> Iterator[Slot]:
    if not module.with_norm:
        return
    after_norm = module.order[module.order.index('norm') + 1:]
    if not module.with_activation:
        after_norm = tuple(step for step in after_norm if step != 'act')
    yield _slot(
        path,
        module,
        module.norm_name,
        act_name='activate' if after_norm[:1] == ('act', ) else None,
        closed=bool(after_norm))


def _read_basic_block(path: str, block: nn.Module) -> Iterator[Slot]:
    yield _slot(path, block, 'norm1', act_name='relu', host=block.conv2)
    yield from _read_residual(path, block, 'norm2')


def _read_bottleneck(path: str, block: nn.Module) -> Iterator[Slot]:
    for i in (1, 2):
        # Plugins stand between an activation and the next convolution.
        plugins = getattr(block, f'after_conv{i}_plugin_names', ())
        follower = plugins[0] if plugins else f'conv{i + 1}'
        yield _slot(
            path,
            block,
            f'norm{i}',
            act_name='relu',
            host=getattr(block, follower))
    yield from _read_residual(path, block, 'norm3')


def _read_residual(path: str, block: nn.Module,
                   last_norm: str) -> Iterator[Slot]:
    """The last norm, the shortcut's, and the activation after the add."""
    last = _slot(path, block, last_norm)
    yield last
    for name, module in (block.downsample or nn.Module()).named_modules():
        if is_norm(module):
            yield Slot(
                _join(path, f'downsample.{name}'), module, channels_of(module),
                block)
    yield Slot(
        path, None, last.channels, block, act_name='relu', host=block)


def _read_resnet(path: str, module: nn.Module) -> Iterator[Slot]:
    if not module.deep_stem:  # a deep stem is a Sequential
        yield _slot(path, module, 'norm1', act_name='relu')


READERS: dict[str, Callable] = {
    'torch.nn.modules.container.Sequential.forward': _read_sequential,
    'mmcv.cnn.bricks.conv_module.ConvModule.forward': _read_conv_module,
    'mmdet.models.backbones.resnet.BasicBlock.forward': _read_basic_block,
    'mmdet.models.backbones.resnet.Bottleneck.forward': _read_bottleneck,
    'mmdet.models.backbones.resnet.ResNet.forward': _read_resnet,
}
