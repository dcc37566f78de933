"""What a training logged: mmengine's ``scalars.json``."""

import json
from pathlib import Path


def read_scalars(log: Path) -> list[dict]:
    """The records of a log, those of validation among those of training.

    Args:
        log (Path): ``WORK_DIR/<time>/vis_data/scalars.json``.

    Returns:
        list[dict]: In the order they were written. What is no record, such
        as a last line that a killed training left unfinished, is not among
        them.
    """
    records = []
    for line in log.read_bytes().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # not JSON, or not even text
            continue
    return [record for record in records if isinstance(record, dict)]


def find_logs(work_dir: Path) -> list[Path]:
    """The logs of a folder, oldest first: they are named after the time."""
    return sorted(work_dir.glob('*/vis_data/scalars.json'))
