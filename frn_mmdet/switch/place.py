"""Put TLUs in their places, and take away what they stand for."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import chain

import torch
from mmengine.model.efficient_conv_bn_eval import (
    efficient_conv_bn_eval_control,
)
from torch import Tensor, nn
from torch.fx import GraphModule

from ..errors import ConfigError
from ..layers import TLU, ConvWS
from .sites import is_activation
from .tlu_plan import FLAG, METHOD, TLUSite


def place_tlus(model: nn.Module, sites: list[TLUSite]) -> None:
    """NormPlace the TLUs of a plan.

    After an FRN layer the TLU is fused into it. Everywhere else it is a
    layer of its own. A module that acted at several sites becomes an
    identity.

    Args:
        model (nn.Module): The detector, changed in place.
        sites (list[TLUSite]): Of :func:`~.tlu_plan.plan_tlus`.
    """
    hosts = defaultdict(list)
    for site in sites:
        if site.way == 'fuse':
            model.get_submodule(site.at).add_tlu()
        elif site.way == 'swap':
            replace_module(model, site.module, _tlu(model, site))
        elif site.way != 'none':
            hosts[site.way, site.at].append(site)
    for (way, path), here in hosts.items():
        _hang(model, way, model.get_submodule(path), here)
    for path in {site.module for site in sites if site.way != 'swap'}:
        module = model.get_submodule(path)
        if is_activation(module):
            replace_module(model, path, nn.Identity())
        else:
            setattr(module, FLAG, False)


def _tlu(model: nn.Module, site: TLUSite) -> TLU:
    """A TLU that trains if one of its norms does.

    A frozen stage must not get a parameter that trains.
    """
    own = [p for path in site.norms
           for p in model.get_submodule(path).parameters()]
    like = next(chain(own, model.parameters()), torch.empty(0))
    tlu = TLU(site.acts[0].channels, device=like.device, dtype=like.dtype)
    return tlu.requires_grad_(not own or any(p.requires_grad for p in own))


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Set, in place, ``new`` wherever the module at ``path`` is."""
    old = model.get_submodule(path)
    for owner in list(model.modules()):
        for name, child in list(owner._modules.items()):
            if child is old:
                setattr(owner, name, new)


def _hang(model: nn.Module, way: str, host: nn.Module,
          sites: list[TLUSite]) -> None:
    """Hang the TLUs of all sites with the same host on it."""
    outputs = {act.after[1]: site for site in sites for act in site.acts
               if act.after is not None}
    if len(sites) == 1 and _is_all_of_it(sites[0], outputs):
        host.add_module('tlu', _tlu(model, sites[0]))
    else:
        host.add_module('tlu', nn.ModuleDict({
            str(i): _tlu(model, site) for i, site in outputs.items()}))
    if way == 'after':
        host.register_forward_hook(_after)
    elif way == 'before':
        host.register_forward_pre_hook(_before)
    else:
        setattr(host, METHOD, partial(_by_method, host))


def _is_all_of_it(site: TLUSite, outputs: dict) -> bool:
    """Whether the site is behind each output; there may be more of them.

    A TridentBottleneck returns a list of three maps in training, of one in
    test.
    """
    after = site.acts[0].after
    return after is None or after[2] is None or len(outputs) == after[2]


# Functions of a module, so that a model with these hooks can be pickled.
def _after(block: nn.Module, args: tuple, output):
    """The block's own activation, on what its ReLU stood behind."""
    if isinstance(output, list | tuple):
        return type(output)(_each(block.tlu, output))
    return block.tlu(output)  # a map, or what torch.fx has for one


def _each(tlu: TLU | nn.ModuleDict, maps: list) -> Iterator[Tensor]:
    for i, x in enumerate(maps):
        if isinstance(tlu, TLU):
            yield tlu(x)
        else:
            yield tlu[str(i)](x) if str(i) in tlu else x


def _before(layer: nn.Module, args: tuple):
    """The activation of the norm before, on its way into the next layer.

    Not a hook on the norm itself: BN folding and SyncBN conversion replace
    norms, and would drop it.
    """
    return (layer.tlu(args[0]), ) + args[1:]


def _by_method(block: nn.Module, *args):
    """The block's own activation, where a method of it is called."""
    return block.tlu(getattr(type(block), METHOD)(block, *args))


def check_traced(model: nn.Module) -> None:
    """Refuse a graph in which a convolution is not what it was.

    mmengine's ``efficient_conv_bn_eval`` folds BNs as a part runs. It scales
    weights, which standardization would undo, and calls no hooks.

    Raises:
        ConfigError: If it took a convolution with standardized weights, or
            one before which a TLU stands.
    """
    for path, part in model.named_modules():
        traced = getattr(vars(part).get('forward'), '__self__', None)
        if not isinstance(traced, GraphModule):
            continue
        for node in traced.graph.nodes:
            if node.target is not efficient_conv_bn_eval_control:
                continue
            conv = traced.get_submodule(node.args[1].target)
            what = ('standardized weights' if isinstance(conv, ConvWS) else
                    'a TLU before it' if _before in
                    conv._forward_pre_hooks.values() else None)
            if what:
                raise ConfigError(
                    f'efficient_conv_bn_eval: {path}.{node.args[1].target} '
                    f'has {what}, which folding a norm on the way would '
                    f'lose; leave {path!r} out of it')
