"""How long a comparison will take, by training three steps of it."""

import subprocess
import tempfile
from pathlib import Path

from ..errors import ConfigError
from ..utils.scalars import find_logs, read_scalars
from .cell import Cell
from .folder import GIB, Folder
from .launch import command, environment
from .progress import duration
from .result import reason

STEPS = 3  # the first is a warm-up


def estimate(folder: Folder, tool: Path, jobs: int, launcher: str) -> str:
    """Train a few steps of the smallest batch, which is the slowest.

    Args:
        folder (Folder): The comparison, and where it will be kept. Nothing is
            written there.
        tool (Path): ``tools/train.py``.
        jobs (int): How many cells will run side by side.
        launcher (str): See :func:`command`.

    Returns:
        str: Sentences on time and room.

    Raises:
        ConfigError: If the training does not start.
    """
    comparison, asked = folder.comparison, folder.comparison.asked
    batch = min(asked.batch_sizes)
    cell = Cell(asked.norms[0], batch, asked.lrs[0], 0)
    seconds = _seconds_per_step(folder, cell, tool, jobs, launcher)
    per_image = seconds / (batch * max(1, comparison.gpus))
    waiting = asked.waiting(folder.results())
    left = sum(count * comparison.images(batch) * per_image
               for batch, count in waiting.items())
    room = asked.count * comparison.checkpoint_bytes() / GIB
    return (
        f'A step of {cell.norm} at batch {batch} takes {seconds:.2g} s here; '
        f'at that pace training takes {duration(left / jobs)} with {jobs} '
        'side by side. Larger batches are faster; starting and evaluating '
        'come on top. '
        f'Checkpoints: up to {room:.2g} GiB.')


def _seconds_per_step(folder: Folder, cell: Cell, tool: Path, jobs: int,
                      launcher: str) -> float:
    comparison = folder.comparison
    with tempfile.TemporaryDirectory() as name:
        work_dir = Path(name)
        cfg = comparison.cell_config(cell, work_dir)
        cfg.train_cfg = dict(
            type='IterBasedTrainLoop', max_iters=STEPS,
            val_interval=STEPS + 1)
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        cfg.param_scheduler = None
        cfg.default_hooks.checkpoint = None
        cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
        cfg.log_processor = dict(
            type='LogProcessor', window_size=1, by_epoch=False)
        config = work_dir / 'probe.py'
        cfg.dump(config)
        run = subprocess.run(
            command(tool, config, work_dir, comparison.gpus, launcher, None),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors='replace',
            env=environment(0, jobs, comparison.gpus, launcher))
        records = [r for path in find_logs(work_dir)
                   for r in read_scalars(path)]
    times = [r['time'] for r in records if 'time' in r][1:]
    if run.returncode or not times:
        raise ConfigError(
            f'the first steps of {cell.norm} failed: '
            f'{reason(run.stdout, run.returncode)}')
    return sum(times) / len(times)
