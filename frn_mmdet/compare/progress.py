"""What is said while cells train, with an estimate of the time left."""

import time
from collections.abc import Mapping
from pathlib import Path

from ..utils.scalars import find_logs, read_scalars
from .cell import Cell
from .comparison import Comparison
from .result import is_ok


def describe_end(comparison: Comparison, results: Mapping[Cell, dict],
                 row: dict) -> str:
    """What became of a cell."""
    asked = comparison.asked
    done = sum(cell in results for cell in asked.cells(results))
    outcome = f'AP {row["AP"]:.3f}' if is_ok(row) else row['status']
    return (f'[{done}/{asked.count}] {describe(Cell.of(row))}: {outcome}, '
            f'{row["seconds"]:.0f} s')


def describe(cell: Cell) -> str:
    """A cell in words."""
    return (f'{cell.norm}, batch {cell.batch}, LR {cell.lr:g}, seed '
            f'{cell.seed}')


def fraction_done(folder: Path, steps: int) -> float:
    """How much of a cell is trained, by its newest log; 0 if none is."""
    logs = find_logs(folder)
    done = [r['iter'] for r in read_scalars(logs[-1]) if 'iter' in r] \
        if logs else []
    return min(1., done[-1] / steps) if done else 0.


def seconds_left(comparison: Comparison, results: Mapping[Cell, dict],
                 running: list[tuple[Cell, float, float]],
                 jobs: int) -> float | None:
    """Estimate the time until all cells have ended.

    A cell takes as long as others of its batch size did, or else of the
    nearest batch size.

    Args:
        comparison (Comparison): What is trained.
        results (dict): What became of the cells that have ended.
        running (list): Cells that train, each with the seconds since it
            started and the share of it that is trained.
        jobs (int): Cells side by side.

    Returns:
        float or None: Seconds; None while nothing tells.
    """
    took: dict[int, list[float]] = {}
    for row in results.values():
        if is_ok(row):
            took.setdefault(row['batch'], []).append(row['seconds'])
    for cell, seconds, fraction in running:
        if cell.batch not in took and fraction > 0:
            took[cell.batch] = [seconds / fraction]
    if not took:
        return None
    left = -sum(seconds for _, seconds, _ in running)
    for batch, count in comparison.asked.waiting(results).items():
        near = took[min(took, key=lambda other: abs(other - batch))]
        left += count * sum(near) / len(near)
    return max(0., left / jobs)


def describe_left(seconds: float | None) -> str:
    """An estimate in words; nothing if there is none."""
    if not seconds:
        return ''
    end = time.strftime('%a %H:%M', time.localtime(time.time() + seconds))
    return f'; about {duration(seconds)} left, until {end}'


def duration(seconds: float) -> str:
    """``20 s``, ``2 min``, ``26 h 05 min``."""
    minutes = round(seconds / 60)
    if not minutes:
        return f'{seconds:.0f} s'
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes:02d} min' if hours else f'{minutes} min'
