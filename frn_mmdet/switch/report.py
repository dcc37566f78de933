"""Say in one log record what a value of ``model.norm_cfg`` came to."""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby, islice

from .apply import Outcome
from .norms import PARTS, NormPlan, part_of

PADDING = {'test': 'left out in test', True: 'left out', False: 'is seen'}


def describe_switch(plan: NormPlan, outcome: Outcome,
                    changed: list[str]) -> str:
    """The text of the record.

    Args:
        plan (NormPlan): What ``model.norm_cfg`` asked for.
        outcome (Outcome): What became of the detector.
        changed (list[str]): What :func:`~.config.set_norms` and
            :func:`~.stock_settings.adjust_settings` say they changed in the
            config.

    Returns:
        str: Several lines: the plan, counts of sites, changes.
    """
    sites = outcome.sites
    norms = [site for site in sites if site.norm is not None]
    lines = [
        f'model.norm_cfg: {plan.label}{_arguments(plan)}, '
        f'{"TLU" if plan.tlu else "no TLU"}, on {", ".join(plan.parts)}'
    ]
    for part in PARTS:
        here = Counter(s.norm for s in norms if part_of(s.path) == part)
        lines.append(f'  {part}: {_counts(here) or "no norm"}')
    lines.append('  activation after a norm: ' +
                 _counts(Counter(s.activation or 'none' for s in norms)))
    adds = Counter(s.activation for s in sites if s.norm is None)
    if adds:
        lines.append(f'  activation after a sum of norms: {_counts(adds)}')
    tlus = sum(site.activation == 'TLU' for site in sites)
    lines.append(f'  in all: {len(norms)} norms, {tlus} TLU')
    lines.append('  padding that other images bring: '
                 f'{PADDING[plan.own_area]} (own_area={plan.own_area})')
    lines += [f'  note: {sentence}' for sentence in _notes(plan, outcome)]
    lines += [f'  changed: {sentence}' for sentence in changed]
    return '\n'.join(lines)


def _notes(plan: NormPlan, outcome: Outcome) -> Iterator[str]:
    """What is worth knowing beside the counts."""
    name = plan.name
    if outcome.standardized:
        yield (f'{outcome.standardized} convolutions that feed {name} have '
               'standardized weights')
    for path, old in islice(outcome.replaced.items(), 1):
        yield (f'{len(outcome.replaced)} norms that no config names are '
               f'switched, the first is {path}, a {old}')
    for old, number in outcome.of_tokens.items():
        yield f'{number} {old} are over tokens or vectors and stay'
    for failure in outcome.failures[:1]:
        yield f'could not run on a small image: {failure}'
    if outcome.unfolded:
        yield (f'{len(outcome.unfolded)} {name} do not follow the convolution '
               f'before them ({outcome.unfolded[0]}): fuse_conv_bn would fold '
               'them wrong')
    for host, levels in groupby(outcome.levels, lambda each: each.host):
        levels = [each.levels for each in levels]
        yield (f'{host}: one {name} a pyramid level, {max(levels)}, in place '
               f'of one for all of them, at {len(levels)} places')
    if outcome.shared:
        yield (f'{len(outcome.shared)} {name} are shared by pyramid levels, '
               f'whose statistics differ ({outcome.shared[0]}); expect a gap '
               'between training and test')
    if outcome.flat:
        way_out = ('learnable_eps=True softens that'
                   if plan.norm.has_learnable_eps else 'GN and LN leave more')
        yield (f'{len(outcome.flat)} {name} are over maps of 1x1 '
               f'({outcome.flat[0]}), of which little is left; {way_out}')


def describe_stayed(plan: NormPlan, stayed: dict[str, str]) -> str:
    """The text of the warning that names norms over a map that stayed."""
    lines = [f'model.norm_cfg: these norms are not switched to {plan.name}:']
    lines += [f'  {path}: {reason}' for path, reason in stayed.items()]
    return '\n'.join(lines)


def _arguments(plan: NormPlan) -> str:
    args = {k: v for k, v in plan.norm_cfg.items() if k != 'type'}
    text = ', '.join(f'{key}={value}' for key, value in args.items())
    return f'({text})' if text else ''


def _counts(counter: Counter) -> str:
    return ', '.join(f'{n} {name}' for name, n in counter.most_common())
