"""What became of one training: a row of the results."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.scalars import find_logs, read_scalars
from .cell import Cell

# What mmdet's evaluators log in place of an AP where no box was detected.
NO_BOXES = 'The testing results of the whole dataset is empty'
# What mmdet's CheckInvalidLossHook logs before it fails.
DIVERGED = 'loss become infinite or NaN'


@dataclass
class Ended:
    """A training that has ended, as it left its folder.

    Attributes:
        cell (Cell): What was trained.
        folder (Path): Where it wrote.
        log (Path): Its output.
        returncode (int): Of its process.
        seconds (float): That the process ran.
        rss_mib (float): Its peak memory on the CPU, in MiB.
        resumed (bool): Whether the process went on with an earlier one's
            work, so that seconds and memory are of the last part.
        masks (bool): Whether masks are evaluated.
    """

    cell: Cell
    folder: Path
    log: Path
    returncode: int
    seconds: float
    rss_mib: float
    resumed: bool
    masks: bool

    @property
    def status(self) -> str:
        """``ok``, ``diverged``, or ``crashed`` with the reason."""
        if self._diverged:
            return 'diverged'
        if self.returncode != 0:
            return f'crashed: {reason(self._text, self.returncode)}'
        if self.metric(*AP) is None:
            return 'crashed: it logged no AP'
        return 'ok, resumed' if self.resumed else 'ok'

    def metric(self, *names: str) -> float | None:
        """The last evaluation's, under the first of its names that is there.

        Of a training that failed there is none.
        """
        if self._diverged or self.returncode != 0:
            return None
        for name in names:
            if name in self._metrics:
                return self._metrics[name]
        none_found = NO_BOXES in self._text and not any(
            name in self._metrics for name in AP)
        of_masks = names[0].startswith('segm')
        return 0. if none_found and (self.masks or not of_masks) else None

    @property
    def last_step(self) -> dict:
        """What it logged of training last; empty if it did not train."""
        return self._steps[-1] if self._steps else {}

    @property
    def memory_mib(self) -> int:
        """Peak memory: the GPU's, if it was on one."""
        gpu = [step['memory'] for step in self._steps if 'memory' in step]
        return max(gpu) if gpu else round(self.rss_mib)

    @property
    def _diverged(self) -> bool:
        loss = self.last_step.get('loss', 0.)
        return DIVERGED in self._text or not math.isfinite(loss)

    @cached_property
    def _text(self) -> str:
        return self.log.read_text(errors='replace')

    @cached_property
    def _records(self) -> list[dict]:
        return [record for path in find_logs(self.folder)
                for record in read_scalars(path)]

    @cached_property
    def _steps(self) -> list[dict]:
        return [record for record in self._records if 'loss' in record]

    @cached_property
    def _metrics(self) -> dict[str, float]:
        """What was logged last under the last part of each key."""
        return {key.rpartition('/')[2]: value for record in self._records
                for key, value in record.items()
                if isinstance(value, (int, float)) and value >= 0}


class Column(NamedTuple):
    """A column of the results.

    Attributes:
        read (callable): Its value of a training that has ended, or None.
        title (str): Of its own table in the report; empty: it has none.
    """

    read: Callable[[Ended], Any]
    title: str = ''


def _metric(title: str, *names: str) -> Column:
    """A metric by the last part of the keys that evaluators log it under."""
    return Column(lambda ended: ended.metric(*names), title)


# Of COCO and its like, LVIS, VOC.
AP = ('bbox_mAP', 'bbox_AP', 'mAP')
# What is compared: each line is a column of results.csv and of result.json,
# and, if it has a title, a table of results.md.
COLUMNS = dict(
    norm=Column(lambda ended: ended.cell.norm),
    batch=Column(lambda ended: ended.cell.batch),
    lr=Column(lambda ended: ended.cell.lr),
    seed=Column(lambda ended: ended.cell.seed),
    steps=Column(lambda ended: ended.last_step.get(
        'iter', ended.last_step.get('step'))),
    AP=_metric('AP', *AP),
    AP50=_metric('AP50', 'bbox_mAP_50', 'bbox_AP50', 'AP50'),
    AP75=_metric('AP75', 'bbox_mAP_75', 'bbox_AP75', 'AP75'),
    segm_AP=_metric('AP of masks', 'segm_mAP', 'segm_AP'),
    loss=Column(lambda ended: ended.last_step.get('loss')),
    seconds=Column(lambda ended: round(ended.seconds, 1)),
    memory_MiB=Column(lambda ended: ended.memory_mib),
    status=Column(lambda ended: ended.status))
# What every result has, of whatever version.
NEEDED = dict.fromkeys(('batch', 'lr', 'seed', 'seconds'), (int, float))
NEEDED |= dict(norm=str, status=str)


def row_of(ended: Ended) -> dict:
    """A value, or None, for each of :data:`COLUMNS`."""
    return {name: column.read(ended) for name, column in COLUMNS.items()}


def read_row(path: Path) -> dict | None:
    """Read what :func:`row_of` found, and was written to a file.

    Args:
        path (Path): JSON.

    Returns:
        dict or None: None if the file holds no such row. A column that was
        not there when it was written is None.
    """
    try:
        row = json.loads(path.read_text())
        row = {name: row.get(name) for name in COLUMNS}
        whole = all(isinstance(row[name], type_)
                    for name, type_ in NEEDED.items())
        whole &= all(isinstance(row[name], (int, float, type(None)))
                     for name, column in COLUMNS.items() if column.title)
        whole &= row['AP'] is not None or not is_ok(row)
    except (ValueError, AttributeError, IsADirectoryError):
        return None
    return row if whole else None


def is_ok(row: dict) -> bool:
    """Whether a training has a result."""
    return row['status'].startswith('ok')


def reason(text: str, returncode: int) -> str:
    """Why a process ended, in one line."""
    if returncode < 0:
        hint = ' (out of memory?)' if returncode == -9 else ''
        return f'killed by signal {-returncode}{hint}'
    # An exception, or the sentence of a ConfigError; of several processes
    # each line begins with the rank.
    errors = re.findall(
        r'^(?:\[?rank\d+\]?: *)?((?:error|[\w.]*(?:Error|Exception))\b.*)$',
        text, re.MULTILINE)
    line = errors[-1] if errors else f'exit status {returncode}'
    return ' '.join(line.split())[:300]
