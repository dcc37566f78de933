"""The report of a comparison: every training, a table, a plot."""

import csv
import shlex
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import mmcv
import mmdet
import mmengine
import torch

import frn_mmdet

from ..utils.markdown import table
from .cell import Cell
from .comparison import Comparison
from .progress import describe
from .result import COLUMNS, is_ok

matplotlib.use('Agg')  # no display is needed

import matplotlib.pyplot as plt  # noqa: E402

PLOTTED = ('AP', 'segm_AP')
# Told apart without colours, too (colours: Okabe and Ito): colour, line,
# marker.
STYLES = [
    ('#0072b2', '-', 'o'), ('#d55e00', '--', 's'), ('#009e73', '-.', '^'),
    ('#cc79a7', ':', 'D'), ('#e69f00', '-', 'v'), ('#56b4e9', '--', 'P'),
    ('#000000', '-.', 'X'), ('#999999', ':', '*'),
]


class Score(NamedTuple):
    """A metric over the seeds of a norm and batch size.

    Attributes:
        values (list[float]): Of the seeds that have one, 0 to 1.
        failed (list[str]): What became of the others.
    """

    values: list[float]
    failed: list[str]

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """The sample standard deviation; 0 of a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.


def write_report(out: Path, comparison: Comparison,
                 results: Mapping[Cell, dict], command: list[str]) -> None:
    """Write ``results.csv``, ``results.md`` and ``results.png``.

    Args:
        out (Path): The folder.
        comparison (Comparison): What is compared.
        results (dict): A row for each cell that has ended.
        command (list[str]): What makes this report.
    """
    with (out / 'results.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(results[cell] for cell in _order(comparison, results))
    (out / 'results.md').write_text(_page(comparison, results, command))
    _plot(out / 'results.png', comparison, results)


def _order(comparison: Comparison, results: Mapping[Cell, dict]) -> list[Cell]:
    """The cells in the order of the lists."""
    norms, batch_sizes, _, lrs = comparison.whole
    return sorted(
        results, key=lambda cell: (
            norms.index(cell.norm), batch_sizes.index(cell.batch),
            lrs.index(cell.lr), cell.seed))


def scores(comparison: Comparison, results: Mapping[Cell, dict],
           metric: str) -> dict[tuple[str, int], Score]:
    """A metric of each norm and batch size, at the best learning rate."""
    found = {}
    for norm in comparison.whole.norms:
        for batch in comparison.whole.batch_sizes:
            lr = comparison.whole.best_lr(norm, batch, results)
            rows = [row for cell, row in results.items()
                    if cell[:3] == (norm, batch, lr)]
            found[norm, batch] = Score(
                [row[metric] for row in rows if row[metric] is not None],
                [row['status'].partition(':')[0] for row in rows
                 if not is_ok(row)])
    return found


def labels(norms: list[str]) -> dict[str, str]:
    """Short names: without arguments where that tells the norms apart.

    Args:
        norms (list[str]): As on the command line.

    Returns:
        dict: ``GN`` for ``GN:num_groups=8`` if there is no other GN.
    """
    short = [norm.partition(':')[0] for norm in norms]
    return {norm: name if short.count(name) == 1 else norm
            for norm, name in zip(norms, short, strict=True)}


def clear_winner(column: Mapping[str, Score]) -> str | None:
    """The norm whose error bar is above all others'.

    Args:
        column (dict): Scores by norm.

    Returns:
        str or None: None also where a norm has fewer than two seeds, since
        one tells nothing of the spread.
    """
    there = {norm: s for norm, s in column.items() if s.values}
    if len(there) < 2 or any(len(s.values) < 2 for s in there.values()):
        return None
    best = max(there, key=lambda norm: there[norm].mean)
    low = there[best].mean - there[best].std
    others = (s.mean + s.std for norm, s in there.items() if norm != best)
    return best if low > max(others) else None


def _page(comparison: Comparison, results: Mapping[Cell, dict],
          command: list[str]) -> str:
    seeds = comparison.whole.seeds
    lines = [
        f'# Norms and batch sizes: {comparison.config}', '',
        'AP in points of one seed, whose spread is not known.'
        if seeds == 1 else
        f'AP in points, mean ± standard deviation of {seeds} seeds. '
        'Bold: its mean less its deviation is above the mean plus the '
        'deviation of every other norm.',
    ]
    for metric, column in COLUMNS.items():
        found = scores(comparison, results, metric) if column.title else {}
        if any(score.values for score in found.values()):
            lines += ['', f'## {column.title}', '',
                      _metric_table(comparison, found)]
    lines += ['', *_names(comparison.whole.norms),
              *_protocol(comparison, results), '',
              *_failures(comparison, results)]
    versions = ', '.join(
        f'{m.__name__} {m.__version__}'
        for m in (frn_mmdet, torch, mmengine, mmcv, mmdet))
    lines += [f'{versions}. The command:', '', f'    {shlex.join(command)}']
    return '\n'.join(lines) + '\n'


def _metric_table(comparison: Comparison, found: Mapping[tuple, Score]) -> str:
    norms, batch_sizes, seeds, _ = comparison.whole
    winners = {batch: clear_winner({
        norm: found[norm, batch] for norm in norms}) for batch in batch_sizes}
    return _table(comparison, lambda norm, batch: _format(
        found[norm, batch], winners[batch] == norm, seeds))


def _table(comparison: Comparison, value: Callable[[str, int], str]) -> str:
    """A value for each norm and batch size."""
    names = labels(comparison.whole.norms)
    return table([
        {'images/GPU': names[norm]} | {
            str(batch): value(norm, batch)
            for batch in comparison.whole.batch_sizes
        } for norm in comparison.whole.norms
    ], ['images/GPU', *map(str, comparison.whole.batch_sizes)])


def _format(score: Score, bold: bool, seeds: int) -> str:
    text = '-'
    if score.values:
        text = f'{100 * score.mean:.1f}'
        if len(score.values) > 1:
            text += f' ± {100 * score.std:.1f}'
        text = f'**{text}**' if bold else text
    notes = []
    there = len(score.values) + len(score.failed)
    if 0 < there < seeds:
        notes.append(f'{there} seed{"s" * (there > 1)}')
    if score.failed:
        kinds = ', '.join(sorted(set(score.failed)))
        notes.append(f'{len(score.failed)} {kinds}')
    return f'{text} ({", ".join(notes)})' if notes else text


def _protocol(comparison: Comparison,
              results: Mapping[Cell, dict]) -> list[str]:
    """How it was trained, in sentences."""
    _, batch_sizes, _, lrs = comparison.whole
    steps = ', '.join(f'{comparison.steps(b)}' for b in batch_sizes)
    same = 'steps' if comparison.same_steps else 'images'
    lines = [
        f'Held constant: {same}. Steps: {steps}. Learning rates are at '
        f'{comparison.reference:g} images a step and '
        + ('the same at every batch size.' if comparison.same_lr else
           'grow with the batch.')
    ]
    if len(lrs) > 1:
        rates = ', '.join(f'{lr:g}' for lr in lrs)
        lines += [
            '', f'Of the learning rates {rates}, seed 0 chose for each norm '
            'and batch size (by AP on the images that are reported), and the '
            'other seeds trained at that one:', '',
            _table(comparison, lambda norm, batch: _rate(
                comparison.whole.best_lr(norm, batch, results)))
        ]
    else:
        lines.append(f'Learning rate: {lrs[0]:g}.')
    return lines + ['', *comparison.notes]


def _names(norms: list[str]) -> list[str]:
    """What the short names stand for."""
    lines = [f'- {name}: `{norm}`' for norm, name in labels(norms).items()
             if name != norm]
    return [*lines, ''] if lines else []


def _rate(lr: float | None) -> str:
    return '-' if lr is None else f'{lr:g}'


def _failures(comparison: Comparison,
              results: Mapping[Cell, dict]) -> list[str]:
    """What did not end well, and what has not ended."""
    lines = [
        f'- {describe(cell)}: {results[cell]["status"]}'
        for cell in _order(comparison, results) if not is_ok(results[cell])
    ]
    asked = comparison.asked
    missing = sum(asked.waiting(results).values())
    if missing:
        lines.append(f'- not trained yet: {missing} of {asked.count}')
    return ['Without a result:', '', *lines, ''] if lines else []


def _plot(path: Path, comparison: Comparison,
          results: Mapping[Cell, dict]) -> None:
    """AP over the batch size, a line a norm."""
    panels: dict[str, Any] = {}
    for metric in PLOTTED:
        found = scores(comparison, results, metric)
        if any(score.values for score in found.values()):
            panels[metric] = found
    figure, axes = plt.subplots(
        1, max(1, len(panels)), squeeze=False, sharey=True,
        layout='constrained', figsize=(1 + 5 * max(1, len(panels)), 4.2))
    norms, batch_sizes, seeds, _ = comparison.whole
    batches = sorted(batch_sizes)
    names = labels(norms)
    for axis, (metric, found) in zip(axes[0], panels.items(), strict=False):
        for i, norm in enumerate(norms):
            color, line, marker = STYLES[i % len(STYLES)]
            # Side by side, so that no error bar hides another.
            shift = 2**(.05 * (i - (len(norms) - 1) / 2))
            points = [(batch, found[norm, batch]) for batch in batches
                      if found[norm, batch].values]
            if points:
                axis.errorbar(
                    [batch * shift for batch, _ in points],
                    [100 * s.mean for _, s in points],
                    [100 * s.std for _, s in points],
                    label=names[norm].replace(':', '\n'), color=color,
                    linestyle=line, marker=marker, capsize=3)
        axis.set_title(COLUMNS[metric].title)
        axis.set_xscale('log', base=2)
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.set(xlabel='images per GPU', ylim=(0, None))
        axis.grid(alpha=.3)
        axis.spines[['top', 'right']].set_visible(False)
    if panels:
        axes[0, 0].set_ylabel(
            'AP' if seeds == 1 else
            f'AP, mean and deviation of {seeds} seeds')
        axes[0, -1].legend(
            loc='center left', bbox_to_anchor=(1.02, .5), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
