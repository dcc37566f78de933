"""The norms of a model, and the activation that acts on each."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from .flow import Act, Flow
from .norms import NORMS, STANDARDIZED, is_norm
from .small_run import flow_of

UNKNOWN = '?'  # in place of an activation


class NormSite(NamedTuple):
    """A place where a norm stands, or an activation on a sum of norms.

    Attributes:
        path (str): Of the norm in the model. Without a norm: of the module
            that has the activation.
        norm (str or None): Name in ``model.norm_cfg``, else the class. None
            where the activation acts on what several norms or a later
            operation made: after a residual add, a concatenation.
        activation (str or None): What acts there: the class of a module or
            the name of a function; None: nothing does; '?': nobody knows,
            since the norm, or what its output goes to, did not run or is
            not known.
        channels (int): Channels of the map there.
        ws (bool): Whether the convolutions that feed the norm have
            standardized weights.
    """

    path: str
    norm: str | None
    activation: str | None
    channels: int
    ws: bool = False


def norm_sites(model: nn.Module) -> list[NormSite]:
    """List the norms of a model and the activation that acts on each.

    The model runs once, in test mode on a small input that is made up for
    it, and its tensors are watched: see :mod:`.flow`. It is not changed.
    Activations on what several norms made (after a residual add) are listed
    too, without a norm; those that have no norm before them (FC layers, mask
    deconv) are not.

    Args:
        model (nn.Module): A detector, switched or not, a part of one, or any
            module that takes a map of features.

    Returns:
        list[NormSite]: In the order the data takes; norms that did not run
        come last.
    """
    return sites_of(model, flow_of(model))


def sites_of(model: nn.Module, flow: Flow) -> list[NormSite]:
    """As :func:`norm_sites`, of a run that has been watched."""
    norms = dict(norms_of(model))
    acts = {}
    for act in flow.acts:
        if act.mark is not None and act.mark.pure and act.mark.norms:
            acts.setdefault(*act.mark.norms, act)
    found = {}  # a key each, so that a head on five levels counts once
    for path, seen in flow.norms.items():
        found[path] = seen.time, NormSite(
            path, norm_name(norms[path]),
            act_name(model, acts[path]) if path in acts else
            UNKNOWN if path in flow.escaped | flow.unknown.keys() else None,
            channels_of(norms[path]),
            bool(seen.convs) and all(
                is_standardized(model.get_submodule(conv))
                for conv in seen.convs))
    for act in flow.acts:
        if act.mark is not None and not act.mark.pure:
            site = NormSite(owner_of(act.module), None, act_name(model, act),
                            act.channels)
            found.setdefault((act.module, site_key(act)), (act.time, site))
    sites = [site for _, site in sorted(
        found.values(), key=lambda item: item[0])]
    return sites + [
        NormSite(path, norm_name(norm), UNKNOWN, channels_of(norm))
        for path, norm in norms.items() if path not in flow.norms]


def is_standardized(module: nn.Module) -> bool:
    """Whether it is a convolution with standardized weights."""
    return type(module) in STANDARDIZED


def norms_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The norms of a model with their paths, each once."""
    for path, module in model.named_modules():
        if is_norm(module):
            yield path, module


def site_key(act: Act) -> frozenset:
    """What tells the sites apart at which one module acts.

    The norms of what it acted on; those that belong to the module's owner
    say it best: a head's block meets another norm before it on each level.
    """
    owner = owner_of(act.module)
    own = {path for path in act.mark.norms if path.startswith(f'{owner}.')}
    return frozenset(own) or act.mark.norms


def label(model: nn.Module, path: str) -> str:
    """The path of a module, or the model's class, for a message."""
    return path or type(model).__name__


def owner_of(path: str) -> str:
    """Path of the module that has the one at ``path``."""
    return path.rpartition('.')[0]


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation; else it calls one as a function."""
    if type(module).__module__ == 'torch.nn.modules.activation':
        return True  # PReLU has a parameter
    return not list(module.children()) and not list(module.parameters())


def act_name(model: nn.Module, act: Act) -> str:
    """What acted, as a user knows it."""
    if act.op == 'tlu':
        return 'TLU'
    module = model.get_submodule(act.module)
    return type(module).__name__ if is_activation(module) else act.op


def norm_name(norm: nn.Module) -> str:
    """The layer's name in ``model.norm_cfg``, or its class if it has none."""
    for name, row in NORMS.items():
        if row.is_layer(norm):
            return name
    return type(norm).__name__


def channels_of(norm: nn.Module) -> int:
    """Channels of any norm layer; the last dimension of a LayerNorm."""
    for name in ('num_features', 'num_channels'):
        if hasattr(norm, name):
            return getattr(norm, name)
    return norm.normalized_shape[-1]
