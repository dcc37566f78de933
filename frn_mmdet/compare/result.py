"""What became of one training."""

import json
import math
import re
from pathlib import Path

from ..utils.scalars import find_logs, read_scalars
from .cell import Cell

# Column: the last part of the keys that evaluators log it under (COCO and
# its like, LVIS, VOC).
METRICS = dict(
    AP=('bbox_mAP', 'bbox_AP', 'mAP'),
    AP50=('bbox_mAP_50', 'bbox_AP50', 'AP50'),
    AP75=('bbox_mAP_75', 'bbox_AP75', 'AP75'),
    segm_AP=('segm_mAP', 'segm_AP'))
FIELDS = ('norm', 'batch', 'lr', 'seed', 'steps', *METRICS, 'loss', 'seconds',
          'memory_MiB', 'status')
# What a training that failed has none of.
MAY_LACK = ('steps', *METRICS, 'loss')

# What mmdet's evaluators log in place of an AP where no box was detected.
NO_BOXES = 'The testing results of the whole dataset is empty'
# What mmdet's CheckInvalidLossHook logs before it fails.
DIVERGED = 'loss become infinite or NaN'


def read_result(cell: Cell, folder: Path, log: Path, returncode: int,
                seconds: float, rss_mib: float, resumed: bool,
                masks: bool) -> dict:
    """Read a training that has ended.

    Args:
        cell (Cell): What was trained.
        folder (Path): Where it wrote.
        log (Path): Its output.
        returncode (int): Of its process.
        seconds (float): That the process ran.
        rss_mib (float): Its peak memory on the CPU, in MiB.
        resumed (bool): Whether the process went on with an earlier one's
            work, so that seconds and memory are of the last part.
        masks (bool): Whether masks are evaluated.

    Returns:
        dict: A value for each of :data:`FIELDS`, None where there is none.
        ``status`` is ok, diverged, or crashed with the reason.
    """
    records = [r for path in find_logs(folder) for r in read_scalars(path)]
    training = [r for r in records if 'loss' in r]
    last = training[-1] if training else {}
    gpu = [r['memory'] for r in training if 'memory' in r]
    row = dict.fromkeys(FIELDS)
    row |= cell._asdict() | dict(
        steps=last.get('iter', last.get('step')),
        loss=last.get('loss'),
        seconds=round(seconds, 1),
        memory_MiB=max(gpu) if gpu else round(rss_mib))
    text = log.read_text(errors='replace')
    loss = row['loss']
    if DIVERGED in text or loss is not None and not math.isfinite(loss):
        row['status'] = 'diverged'
    elif returncode != 0:
        row['status'] = f'crashed: {reason(text, returncode)}'
    else:
        row |= _metrics(records, text, masks)
        row['status'] = 'ok, resumed' if resumed else 'ok'
        if row['AP'] is None:
            row['status'] = 'crashed: it logged no AP'
    return row


def read_row(path: Path) -> dict | None:
    """Read what :func:`read_result` found, and was written to a file.

    Args:
        path (Path): JSON.

    Returns:
        dict or None: None if the file holds no such row.
    """
    try:
        row = json.loads(path.read_text())
        row = {field: row[field] for field in FIELDS}
        whole = all(
            isinstance(value, str) if field in ('norm', 'status') else
            isinstance(value, (int, float)) or field in MAY_LACK
            and value is None for field, value in row.items())
        whole &= row['AP'] is not None or not is_ok(row)
    except (ValueError, TypeError, KeyError, AttributeError,
            IsADirectoryError):
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


def _metrics(records: list[dict], text: str, masks: bool) -> dict:
    """The APs of the last evaluation."""
    found = {}
    for record in records:
        for key, value in record.items():
            for column, names in METRICS.items():
                if key.rpartition('/')[2] in names and value >= 0:
                    found[column] = value
    if not found and NO_BOXES in text:
        found = dict(AP=0., AP50=0., AP75=0., segm_AP=0. if masks else None)
    return found
