"""Find the norms of a model in a state dict, whatever it was trained with.

What is read is the place: a state dict that has a BN where the model has
FRN, ``layer1.0.bn2`` for ``layer1.0.frn2``, or the same index of a
Sequential. So no architecture has to be known by name.
"""

import re
from dataclasses import dataclass
from typing import Any

from mmcv.cnn.bricks.norm import infer_abbr
from torch import Tensor, nn

from ..layers import LevelNorms
from .incoming import Incoming
from .norms import NORMS, NormPlan, part_of
from .sites import channels_of, norms_of

BN = infer_abbr(nn.BatchNorm2d)


@dataclass(frozen=True)
class NormPlace:
    """A norm of the plan, and where a state dict has it or should.

    Attributes:
        norm (nn.Module): The norm.
        path (str): Its path in the detector.
        own (str): What the keys of its own state start with.
        around (str): What those of the module start with that has it.
        there (bool): Whether its own state is there.
        bn (str or None): What those of a BN start with that stands there.
        other (str or None): Another norm that stands there, by its name.
        beside (bool): Whether the state dict has convolutions that are
            beside it, or there are none.
        expected (bool): Whether it has them without a bias, which a norm
            would have made needless.
        fits (bool): Whether none of them that may feed it is of another
            shape there: then it is not loaded, and what the state dict says
            of its map is of another.
    """

    norm: nn.Module
    path: str
    own: str
    around: str
    there: bool
    bn: str | None
    other: str | None
    beside: bool
    expected: bool
    fits: bool

    @property
    def part(self) -> str:
        """The key of the detector's config that it belongs to."""
        return self.path.partition('.')[0]


def places_of(incoming: Incoming) -> list[NormPlace]:
    """Find the places of a module's norms in a state dict."""
    module, state_dict = incoming.module, incoming.state_dict
    prefix, plan = incoming.prefix, incoming.plan
    places = []
    norms = {path: norm for path, norm in norms_of(module)
             if plan.norm.is_layer(norm)}
    own_statistics = _have_own_statistics(norms, state_dict, prefix, plan)
    misfits = misfits_of(incoming)
    for path, norm in norms.items():
        if norm.weight is None:
            continue
        own = f'{prefix}{path}'
        owner, name = owner_and_name(module, path)
        around = f'{prefix}{owner}.' if owner else prefix
        postfix = name.removeprefix(infer_abbr(plan.norm.layer))
        of_bn = incoming.is_of(part_of(incoming.where(path)), 'BN')
        names = [f'{BN}{postfix}'] + (
            [name] if of_bn or not own_statistics else [])
        bn = next((f'{around}{other}.' for other in names
                   if f'{around}{other}.running_mean' in state_dict), None)
        convs = convs_of(module.get_submodule(owner), around)
        convs_there = any(f'{conv}.weight' in state_dict and not is_vector(
            state_dict[f'{conv}.weight']) for conv in convs)
        places.append(NormPlace(
            norm=norm,
            path=incoming.where(path),
            own=f'{own}.',
            around=around,
            there=any(is_vector(state_dict.get(f'{own}.{name}'))
                      for name in ('weight', 'running_mean')),
            bn=bn,
            other=_other_norm(state_dict, around, postfix, plan),
            beside=convs_there or not convs,
            expected=convs_there and not any(
                f'{conv}.bias' in state_dict for conv in convs),
            fits=not any(
                conv.out_channels == channels_of(norm)
                for key, conv in misfits.items()
                if f'{prefix}{key}' in convs)))
    return places


def owner_and_name(module: nn.Module, path: str) -> tuple[str, str]:
    """Path of the module that has a norm, and the norm's name there.

    One of several for the levels of a pyramid has its number in its name,
    ``bn.0``: what they belong to is that of the one for all.
    """
    owner, _, name = path.rpartition('.')
    if owner and isinstance(module.get_submodule(owner), LevelNorms):
        owner, _, norms = owner.rpartition('.')
        name = f'{norms}.{name}'
    return owner, name


def spread_levels(incoming: Incoming) -> None:
    """Let, in place, the norms of all levels start from one for all.

    Each module does so when it is loaded; but here it has a BN for a BRN,
    and what looks at the keys before that shall find them.
    """
    own = infer_abbr(incoming.plan.norm.layer)
    for path, norms in incoming.module.named_modules():
        if not isinstance(norms, LevelNorms):
            continue
        parent, dot, name = f'{incoming.prefix}{path}'.rpartition('.')
        for there in {name, f'{BN}{name.removeprefix(own)}'}:
            norms.spread(incoming.state_dict, f'{parent}{dot}{there}.')


def _have_own_statistics(norms: dict[str, nn.Module], state_dict: dict,
                         prefix: str, plan: NormPlan) -> bool:
    """Whether running statistics under the norms' own names are theirs.

    An IN that tracks them has BN's keys. So the model tells, or the names
    that mmcv gives (``in1``), since an index may be either's.
    """
    if plan.norm.batch:
        return False
    own = re.compile(rf'(.*\.)?{infer_abbr(plan.norm.layer)}\d*')
    return any(
        getattr(norm, 'running_mean', None) is not None or own.fullmatch(path)
        and f'{prefix}{path}.running_mean' in state_dict
        for path, norm in norms.items())


def misfits_of(incoming: Incoming) -> dict[str, nn.Module]:
    """The convolutions that a state dict has in another shape, by path."""
    return {
        path: conv for path, conv in incoming.module.named_modules()
        if isinstance(conv, nn.modules.conv._ConvNd)
        and isinstance(there := incoming.state_dict.get(
            f'{incoming.prefix}{path}.weight'), Tensor)
        and there.dim() == conv.weight.dim()
        and there.shape != conv.weight.shape}


def _other_norm(state_dict: dict, around: str, postfix: str,
                plan: NormPlan) -> str | None:
    """The norm in a place by mmcv's names: ``gn1`` in that of ``frn1``.

    Or in that of ``bn1.0``, which it may be for all levels.
    """
    for other, row in NORMS.items():
        stem = f'{around}{infer_abbr(row.layer)}'
        if row.layer is not plan.norm.layer and any(
                f'{stem}{end}.{name}' in state_dict
                for end in (postfix, postfix.partition('.')[0])
                for name in ('weight', 'running_mean')):
            return other
    return None


def is_vector(value: Any) -> bool:
    """Whether it may be a norm's; a convolution's weight is none."""
    return isinstance(value, Tensor) and value.dim() == 1


def convs_of(owner: nn.Module, around: str) -> list[str]:
    """The convolutions of a module, as a state dict names them."""
    return [f'{around}{name}' for name, child in owner.named_children()
            if isinstance(child, nn.modules.conv._ConvNd)]
