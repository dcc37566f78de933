"""The output folder of a comparison: one plan, its configs and results.

``plan.json``, ``results.*`` for readers; ``configs/CELL.py`` and
``cells/CELL/`` (mmdet's work folder, ``log.txt``, ``result.json``).
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mmengine.utils.dl_utils import collect_env

import frn_mmdet

from ..errors import ConfigError
from .cell import Cell
from .plan import Plan

# Of a plan these may grow from one command to the next; the rest is the same.
LISTS = ('norms', 'batch_sizes', 'lrs')
GIB = 2**30
LOCK_PATIENCE = 20  # seconds that a dead command's trainings have to end


class Folder:
    """Where a comparison is kept.

    Args:
        out (Path): The folder. It need not be there.
        plan (Plan): What is kept there.
    """

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out = out
        self.plan = plan

    def check(self, jobs: int) -> None:
        """Refuse a folder in which the plan cannot be trained.

        Args:
            jobs (int): How many trainings run side by side.

        Raises:
            ConfigError: If it holds another plan or something else, cannot
                be written, or has no room.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f'--out: {self.out} is a file')
        if self._plan_file.is_file():
            self._check_plan(json.loads(self._plan_file.read_text())['plan'])
        elif self.out.is_dir() and any(self.out.iterdir()):
            raise ConfigError(
                f'--out: {self.out} holds something else than a comparison; '
                'give another folder')
        there = self.out.absolute()
        while not there.exists():
            there = there.parent
        if not os.access(there, os.W_OK):
            raise ConfigError(f'--out: {there} cannot be written')
        # Each cell keeps one checkpoint, and writes the next before it
        # removes the last.
        done = len(self.results())
        need = (self.plan.count - done + jobs) * self.plan.checkpoint_bytes()
        free = shutil.disk_usage(there).free
        if free < need:
            raise ConfigError(
                f'--out: {there} has {free / GIB:.1f} GiB free and the '
                f'checkpoints take {need / GIB:.1f} GiB; give another folder '
                'or add --cfg-options default_hooks.checkpoint=None')

    def write(self, command: list[str]) -> None:
        """Write the plan, and what it ran on."""
        self.out.mkdir(parents=True, exist_ok=True)
        about = {'frn_mmdet': frn_mmdet.__version__}
        about |= {key: str(value) for key, value in collect_env().items()}
        _write(self._plan_file, dict(
            command=command, plan=self.plan.fingerprint(), environment=about))

    def cell(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.out / 'cells' / cell.name

    def write_config(self, cell: Cell) -> Path:
        """Write a cell's config, and return its file."""
        path = self.out / 'configs' / f'{cell.name}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        self.plan.cell_config(cell, self.cell(cell)).dump(path)
        return path

    def add(self, cell: Cell, row: dict) -> None:
        """Keep what became of a cell."""
        _write(self.cell(cell) / 'result.json', row)

    def results(self) -> dict[Cell, dict]:
        """What became of the cells that have ended."""
        rows = [json.loads(path.read_text())
                for path in self.out.glob('cells/*/result.json')]
        return {Cell.of(row): row for row in rows}

    @contextlib.contextmanager
    def lock(self) -> Iterator[int]:
        """Keep a second command out while this one trains.

        Trainings inherit the lock, so one that outlives its command keeps
        the next from training the same cell beside it.

        Yields:
            int: The file descriptor to hand on.

        Raises:
            ConfigError: If the folder is taken.
        """
        with (self.out / '.lock').open('w') as file:
            deadline = time.monotonic() + LOCK_PATIENCE
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ConfigError(
                            f'--out: trainings of another command still run '
                            f'in {self.out}; wait for them or stop them'
                        ) from None
                    time.sleep(.2)
            yield file.fileno()

    @property
    def _plan_file(self) -> Path:
        return self.out / 'plan.json'

    def _check_plan(self, old: dict) -> None:
        new = self.plan.fingerprint()
        for key, value in old.items():
            if key in LISTS:
                same = set(value) <= set(new[key])
            elif key == 'seeds':
                same = value <= new[key]
            else:
                same = value == new[key]
            if not same:
                what = ('another config or other --cfg-options'
                        if key == 'resolved' else
                        f'{key} {value}, here {new[key]}')
                raise ConfigError(
                    f'--out: {self.out} holds results of another plan '
                    f'({what}); give another folder, or add to the norms, '
                    'batch sizes, seeds and learning rates of that plan')


def _write(path: Path, content: dict) -> None:
    """Write JSON, all of it or nothing."""
    part = path.with_suffix('.part')
    part.write_text(json.dumps(content, indent=1) + '\n')
    part.replace(path)
