"""Find where a TLU has to stand, and how it can get there.

A module that acts at one site only can be replaced. Where one acts at several
(the ``self.relu`` of a residual block), each TLU has to go where the data
comes from or goes to: into the FRN, behind the block, or in front of the next
layer.
"""

from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from .flow import Act, Flow
from .norms import NormPlan
from .sites import act_name, is_activation, label, owner_of, site_key

# mmdet's FPNs call F.relu before their extra convolutions if told to.
FLAG = 'relu_before_extra_convs'
# DetectoRS runs its blocks by this method, too, which no hook sees.
METHOD = 'rfp_forward'


class Unplaceable(Exception):
    """No TLU can stand for an activation.

    Attributes:
        norms (frozenset[str]): Paths of the norms it acts on.
    """

    def __init__(self, text: str, norms: frozenset) -> None:
        super().__init__(text)
        self.norms = norms


@dataclass
class TLUSite:
    """The times that an activation acts at one place.

    Attributes:
        module (str): Path of the module that acts, or calls a function.
        acts (list[Act]): At least one.
        way (str or None): How the TLU gets there: 'fuse' into the norm,
            'swap' for the module, 'after' a module that returns what the
            activation gave, 'before' the module that takes it, by the
            'method' that returns it; 'none': a TLU has acted before.
        at (str or None): Path of what it is hung on.
    """

    module: str
    acts: list[Act]
    way: str | None = None
    at: str | None = None

    @property
    def norms(self) -> frozenset:
        """Paths of the norms it acts on; of those before, if all are done."""
        mark = self.acts[0].mark
        return mark.norms or mark.done


def plan_tlus(model: nn.Module, plan: NormPlan, flow: Flow,
              norms: set[str]) -> list[TLUSite]:
    """Find where a TLU has to stand, and how it can get there.

    Args:
        model (nn.Module): A detector. It is not changed.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
        flow (Flow): What a run of the detector has shown.
        norms (set[str]): Paths of the norms that are the plan's.

    Returns:
        list[TLUSite]: For :func:`~.place.place_tlus`.

    Raises:
        Unplaceable: If it cannot.
    """
    sites = []
    for path, ours in acting_on(norms, flow).items():
        acts = [act for act in flow.acts if act.module == path]
        _check_replaceable(model, plan, norms, ours, acts)
        sites += _sites_of_module(model, plan, flow, ours)
    _check_hosts(model, sites, plan)
    return sites


def check_training(model: nn.Module, plan: NormPlan, sites: list[TLUSite],
                   flow: Flow, norms: set[str]) -> None:
    """Refuse what acts otherwise in training.

    Args:
        model (nn.Module): A detector. It is not changed.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
        sites (list[TLUSite]): Of :func:`plan_tlus`, from a run in test mode.
        flow (Flow): Of a run in training mode.
        norms (set[str]): Paths of the norms that are the plan's.

    Raises:
        Unplaceable: If an activation acts on a norm, or on something else,
            in training only, or what it gives goes elsewhere.
    """
    planned = {(site.module, site_key(site.acts[0])): site for site in sites}
    swapped = {site.module for site in sites if site.way == 'swap'}
    known = {site.module for site in sites}
    for act in flow.acts:
        behind = _behind(act, norms)
        if act.op == 'tlu' or not behind and act.module not in known:
            continue
        site = planned.get((act.module, site_key(act))) if behind else None
        is_hung = site is not None and site.way in ('before', 'after')
        if not behind or site is None and act.module not in swapped or (
                is_hung and act.readers - {site.at}):
            behind = behind or next(
                site.norms for site in sites if site.module == act.module)
            raise Unplaceable(
                f'{label(model, act.module)}: does not act on '
                f'{min(behind)} ({plan.name}) '
                'in training as it does in test, so no TLU can be placed; '
                + plan.way_out(behind, 'tlu'), frozenset(behind))


def acting_on(norms: set[str], flow: Flow) -> dict[str, list[Act]]:
    """Activations that are no TLU, on the output of norms, by module."""
    found = defaultdict(list)
    for act in flow.acts:
        if act.op != 'tlu' and _behind(act, norms):
            found[act.module].append(act)
    return found


def _sites_of_module(model: nn.Module, plan: NormPlan, flow: Flow,
                     ours: list[Act]) -> list[TLUSite]:
    groups = defaultdict(list)
    for act in ours:
        groups[act.mark.pure, not act.mark.norms, site_key(act)].append(act)
    sites = [TLUSite(group[0].module, group) for group in groups.values()]
    can_swap = is_activation(model.get_submodule(sites[0].module))
    for site in sites:
        site.way, site.at = _find_way(model, plan, flow, site,
                                      can_swap and len(sites) == 1)
    lost = [site for site in sites if site.way is None]
    if lost and can_swap and _is_one_swap(ours):
        return [TLUSite(ours[0].module, ours, 'swap', ours[0].module)]
    for site in lost:
        raise Unplaceable(
            f'{label(model, site.module)}: acts on {min(site.norms)} '
            f'({plan.name}), but '
            + _why_not(site) + '; ' + plan.way_out(site.norms, 'tlu'),
            site.acts[0].mark.norms)
    return sites


def _is_one_swap(acts: list[Act]) -> bool:
    """Whether one TLU can stand for a module wherever it acts.

    A head may activate each level of a pyramid by the same module: then they
    share their thresholds, as they would share those of a PReLU.
    """
    channels = {act.channels for act in acts}
    return len(channels) == 1 and None not in channels and not any(
        act.in_place for act in acts)


def _behind(act: Act, norms: set[str]) -> set[str]:
    """The norms of the plan that an activation acts on."""
    return set() if act.mark is None else norms & (
        act.mark.norms or act.mark.done)


def _check_replaceable(model: nn.Module, plan: NormPlan, norms: set[str],
                       ours: list[Act], acts: list[Act]) -> None:
    """Refuse what is not a ReLU, or not a module, or acts elsewhere, too."""
    act = ours[0]
    norm = min(_behind(act, norms))
    module = model.get_submodule(act.module)
    name = act_name(model, act)
    if not is_activation(module):
        if not getattr(module, FLAG, False) or len(ours) < len(acts):
            raise Unplaceable(
                f'{_caller(model, act)} ({name}): called as a function, it '
                f'acts on {norm} ({plan.name}), so no TLU can be placed; '
                + _module_instead(plan) + plan.way_out({norm}, 'tlu'),
                act.mark.norms)
    elif type(module) is not nn.ReLU:
        raise Unplaceable(
            f'{act.module}: {name} acts on {norm} ({plan.name}), and a TLU '
            f'can only stand for a ReLU; {_relu_instead(plan)}, or set '
            'model.norm_cfg.tlu=False', act.mark.norms)
    elif len(ours) < len(acts):
        raise Unplaceable(
            f'{act.module}: acts on {norm} ({plan.name}), but also where '
            'there is no norm of it, so no TLU can stand for it; '
            + plan.way_out({norm}, 'tlu'), act.mark.norms)


def _module_instead(plan: NormPlan) -> str:
    return 'call an nn.ReLU there, or ' if plan.parts is None else ''


def _relu_instead(plan: NormPlan) -> str:
    return ('put nn.ReLU in its place' if plan.parts is None else
            "set act_cfg=dict(type='ReLU') for this layer")


def _caller(model: nn.Module, act: Act) -> str:
    return f'{act.module}.forward' if act.module else label(model, '')


def _find_way(model: nn.Module, plan: NormPlan, flow: Flow, site: TLUSite,
              can_swap: bool) -> tuple[str | None, str | None]:
    mark = site.acts[0].mark
    if mark.pure and not mark.norms:
        return 'none', None
    norm = min(site.norms)
    if mark.pure and norm not in flow.used and hasattr(
            plan.norm.layer, 'add_tlu'):
        return 'fuse', norm
    channels = {act.channels for act in site.acts}
    if None in channels or len(channels) > 1 or any(
            act.in_place for act in site.acts):
        return None, None
    if can_swap:
        return 'swap', site.module
    hosts = {act.after and act.after[0] for act in site.acts}
    if len(hosts) == 1 and None not in hosts:
        host = hosts.pop()
        return ('after', host) if _gives_nothing_else(
            flow, host, site) and _has_room(model, host) else (None, None)
    owner = owner_of(site.module)
    if hosts == {None} and hasattr(model.get_submodule(owner), METHOD):
        return 'method', owner
    readers = set().union(*(act.readers for act in site.acts))
    if hosts == {None} and len(readers) == 1 and None not in readers:
        host = readers.pop()
        return ('before', host) if flow.taken[host] <= set(
            site.acts) and _has_room(model, host) else (None, None)
    return None, None


def _gives_nothing_else(flow: Flow, host: str, site: TLUSite) -> bool:
    """Whether each call of a module gives the site's map at its place only.

    So not where a flag lets a block return before its activation.
    """
    places = {act.after[1] or 0 for act in site.acts}
    return all({i for i, act in enumerate(acts) if act in site.acts} == places
               for acts in flow.returned[host])


def _has_room(model: nn.Module, host: str) -> bool:
    return not hasattr(model.get_submodule(host), 'tlu')


def _why_not(site: TLUSite) -> str:
    if any(act.channels is None for act in site.acts):
        return ('the channels are not the second dimension there, as a TLU '
                'has them')
    if any(act.in_place for act in site.acts):
        return ('in place, on what is used by another name as well, which '
                'a TLU would not change')
    return ('at other places, too, and where what it gives goes to, no TLU '
            'can be hung')


def _check_hosts(model: nn.Module, sites: list[TLUSite],
                 plan: NormPlan) -> None:
    """Refuse two TLUs in one place."""
    taken = {}
    for site in sites:
        if site.way in ('none', 'fuse', 'swap'):
            continue
        for act in site.acts:
            other = taken.setdefault((site.at, act.after), site)
            way = taken.setdefault(site.at, site).way
            if other is not site or way != site.way:
                raise Unplaceable(
                    f'{label(model, site.module)}: acts on {min(site.norms)} '
                    f'({plan.name}) and on {min(other.norms)} on the way to '
                    f'{label(model, site.at)}, where only one TLU can be '
                    'hung; ' + plan.way_out(site.norms, 'tlu'),
                    site.acts[0].mark.norms)
