"""What a training logged: mmengine's ``scalars.json``."""

import json
from pathlib import Path


def read_scalars(log: Path) -> list[dict]:
    """The records of a log, those of validation among those of training.

    Args:
        log (Path): ``WORK_DIR/<time>/vis_data/scalars.json``.

    Returns:
        list[dict]: In the order they were written. A last line that a
        killed training left unfinished is not among them.
    """
    records = []
    for line in log.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def find_logs(work_dir: Path) -> list[Path]:
    """The logs of a folder, oldest first: they are named after the time."""
    return sorted(work_dir.glob('*/vis_data/scalars.json'))
