"""Say in one log record what a value of ``model.norm_cfg`` came to."""

from collections import Counter

from .apply import Outcome
from .norms import PARTS, NormPlan, part_of


def describe_switch(plan: NormPlan, outcome: Outcome,
                    mended: list[str]) -> str:
    """The text of the record.

    Args:
        plan (NormPlan): What ``model.norm_cfg`` asked for.
        outcome (Outcome): What became of the detector.
        mended (list[str]): What :func:`~frn_mmdet.switch.mend.mend` said.

    Returns:
        str: Several lines: the plan, counts of sites, mends.
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
    lines += [f'  note: {sentence}' for sentence in outcome.said]
    lines += [f'  mended: {sentence}' for sentence in mended]
    return '\n'.join(lines)


def describe_stayed(plan: NormPlan, stayed: dict[str, str]) -> str:
    """The text of the warning that names norms over a map that stayed."""
    lines = [f'model.norm_cfg: not {plan.name} but as they were:']
    lines += [f'  {path}: {reason}' for path, reason in stayed.items()]
    return '\n'.join(lines)


def _arguments(plan: NormPlan) -> str:
    args = {k: v for k, v in plan.norm_cfg.items() if k != 'type'}
    text = ', '.join(f'{key}={value}' for key, value in args.items())
    return f'({text})' if text else ''


def _counts(counter: Counter) -> str:
    return ', '.join(f'{n} {name}' for name, n in counter.most_common())
