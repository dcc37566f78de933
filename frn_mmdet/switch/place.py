"""Put a TLU wherever an activation follows a norm of the plan."""

from collections.abc import Iterator
from types import CodeType

from mmcv.cnn import is_norm
from torch import nn

from ..errors import ConfigError
from ..layers import TLU
from .norms import NormPlan, part_of
from .sites import ACTIVATIONS, CONTAINERS, READERS, Slot, find_slots, read_key

# A ``forward`` that calls one of these as a function hides an activation.
FUNCTIONAL = {
    'relu', 'relu_', 'relu6', 'leaky_relu', 'elu', 'gelu', 'silu', 'mish',
    'hardswish'
}


def place_tlu(model: nn.Module, plan: NormPlan) -> None:
    """Replace, in place, each ReLU that follows a norm of the plan.

    After an FRN layer the TLU is fused into it. After another norm, and
    after a residual add, it is a layer of its own.

    Args:
        model (nn.Module): A detector, just built.
        plan (NormPlan): What ``model.norm_cfg`` asks for. Nothing happens if
            its ``tlu`` is False.

    Raises:
        ConfigError: If an activation behind a norm cannot be replaced. The
            model is left as it was.
    """
    if not plan.tlu:
        return
    slots = [slot for slot in find_slots(model) if _in_plan(slot, plan)]
    with_act = [
        slot for slot in slots
        if slot.activation is not None and not _has_tlu(slot)
    ]
    for slot in with_act:
        _check_replaceable(slot, plan)
    for slot in slots:
        if not slot.closed:
            _check_nothing_hidden(model, slot, plan)
    for slot in with_act:
        _place(slot)
    for slot in with_act:  # only now: blocks use one activation three times
        if not isinstance(getattr(slot.owner, slot.act_name), TLU):
            setattr(slot.owner, slot.act_name, nn.Identity())


def _in_plan(slot: Slot, plan: NormPlan) -> bool:
    """Whether the slot's norm is the plan's, in one of the plan's parts."""
    if part_of(slot.path) not in plan.parts:
        return False
    if slot.norm is None:  # an add: as the block's own norms
        return any(
            type(module) is plan.norm.layer
            for module in slot.owner.children())
    return type(slot.norm) is plan.norm.layer


def _has_tlu(slot: Slot) -> bool:
    return slot.activation is slot.norm or isinstance(slot.activation, TLU)


def _check_replaceable(slot: Slot, plan: NormPlan) -> None:
    if type(slot.activation) is not nn.ReLU:
        raise ConfigError(
            f'{slot.path}: {type(slot.activation).__name__} follows '
            f'{plan.name} here, and a TLU can only stand for a ReLU; set '
            "act_cfg=dict(type='ReLU') for this layer, or tlu=False in "
            'model.norm_cfg')


def _place(slot: Slot) -> None:
    if hasattr(slot.norm, 'add_tlu'):
        slot.norm.add_tlu()
        return
    tlu = TLU(slot.channels)
    tlu.requires_grad_(_trains(slot))
    if slot.host is None:
        setattr(slot.owner, slot.act_name, tlu)
    else:
        slot.host.add_module('tlu', tlu)
        if slot.host is slot.owner:
            slot.host.register_forward_hook(_after)
        else:
            slot.host.register_forward_pre_hook(_before)


def _trains(slot: Slot) -> bool:
    """Whether the norm does, or after an add those of its block.

    A frozen stage must not get a parameter that trains.
    """
    norms = [slot.norm] if slot.norm is not None else [
        m for m in slot.owner.children() if is_norm(m)]
    return any(p.requires_grad for norm in norms for p in norm.parameters())


# Functions of a module, so that a model with these hooks can be pickled.
def _after(block: nn.Module, args: tuple, output):
    """The block's own activation, on the sum that its ReLU stood behind."""
    return block.tlu(output)


def _before(layer: nn.Module, args: tuple):
    """The activation of the norm before, on its way into the next layer.

    Not a hook on the norm itself: BN folding and SyncBN conversion replace
    norms, and would drop it.
    """
    return (layer.tlu(args[0]), ) + args[1:]


def _check_nothing_hidden(model: nn.Module, slot: Slot,
                          plan: NormPlan) -> None:
    """Refuse activations that may act on an open slot's norm unseen."""
    for path in _possible_activations(model, slot.path):
        raise ConfigError(
            f'{path}: cannot tell whether this activation follows '
            f'{slot.path} ({plan.name}), so no TLU can be placed; leave '
            f'{part_of(path)!r} out of model.norm_cfg.parts, or set tlu=False')


def _possible_activations(model: nn.Module, path: str) -> Iterator[str]:
    """Activations that the output of the module at ``path`` may meet.

    Follows the output outwards: through a Sequential to the next child, and
    out of every module whose ``forward`` may return it.
    """
    while '.' in path:
        path, _, name = path.rpartition('.')
        parent = model.get_submodule(path)
        known = read_key(parent) in READERS
        if isinstance(parent, nn.Sequential) and known:
            names = list(dict(parent.named_children()))
            following = names[names.index(name) + 1:]
            if following:
                if isinstance(parent[len(names) - len(following)],
                              ACTIVATIONS):
                    yield f'{path}.{following[0]}'
                return
        elif not known:
            yield from (f'{path}.{act}' for act in _activations_of(parent))


def _activations_of(module: nn.Module) -> Iterator[str]:
    """Names of the activations that a module's ``forward`` may call."""
    yield from _activation_modules(module)
    forward = type(module).forward
    # FPN's flag: without it, its F.relu is never called.
    if getattr(module, 'relu_before_extra_convs', None) is not False:
        for name in sorted(set(_names_in(forward.__code__)) & FUNCTIONAL):
            if not hasattr(module, name):
                yield f'forward ({name})'


def _activation_modules(module: nn.Module) -> Iterator[str]:
    for name, child in module.named_children():
        if isinstance(child, ACTIVATIONS) and not isinstance(child, TLU):
            yield name
        elif isinstance(child, CONTAINERS):
            yield from (f'{name}.{act}' for act in _activation_modules(child))
        if isinstance(module, nn.Sequential):
            return  # the rest of it acts on the first child's output


def _names_in(code: CodeType) -> Iterator[str]:
    """Names that a function and the functions in it refer to."""
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _names_in(const)
