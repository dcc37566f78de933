"""The output folder of a comparison: one plan, its configs and results.

``plan.json``, ``results.*`` for readers; ``configs/CELL.py`` and
``cells/CELL/`` (mmdet's work folder, ``log.txt``, ``result.json``);
``broken/`` has cells whose result could not be read.
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
from .result import read_row
from .same import difference, read_plan

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
        there = self._check_place()
        if self._plan_file.is_file():
            self._check_plan()
        elif self.out.is_dir() and any(self.out.iterdir()):
            raise ConfigError(
                f'--out: {self.out} holds something else than a comparison; '
                'give another folder')
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
        """Write the plan, and what it ran on.

        Raises:
            ConfigError: If nothing can be written there after all.
        """
        about = {'frn_mmdet': frn_mmdet.__version__}
        about |= {key: str(value) for key, value in collect_env().items()}
        try:
            for path in self._folders:
                path.mkdir(parents=True, exist_ok=True)
            _write(self._plan_file, dict(
                command=command, config=self.plan.config,
                plan=self.plan.fingerprint(), environment=about))
        except OSError as error:
            raise ConfigError(
                f'--out: {self.out} cannot be written: {error}') from error

    def cell(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.out / 'cells' / cell.name

    def write_config(self, cell: Cell) -> Path:
        """Write a cell's config, and return its file."""
        path = self.out / 'configs' / f'{cell.name}.py'
        self.plan.cell_config(cell, self.cell(cell)).dump(path)
        return path

    def add(self, cell: Cell, row: dict) -> None:
        """Keep what became of a cell."""
        _write(self.cell(cell) / 'result.json', row)

    def results(self) -> dict[Cell, dict]:
        """What became of the plan's cells that have ended."""
        plan = self.plan
        rows = map(_read, self._result_files())
        found = {Cell.of(row): row for row in rows if row is not None}
        return {
            cell: row for cell, row in found.items()
            if cell.norm in plan.norms and cell.batch in plan.batch_sizes
            and cell.lr in plan.lrs and cell.seed < plan.seeds
        }

    def set_broken_aside(self) -> list[str]:
        """Move each cell whose result cannot be read out of the way.

        Returns:
            list[str]: A sentence for each.
        """
        said = []
        for path in self._result_files():
            if _read(path) is None:
                now = time.strftime('%Y%m%d_%H%M%S')
                aside = self.out / 'broken' / f'{path.parent.name}.{now}'
                aside.parent.mkdir(exist_ok=True)
                path.parent.rename(aside)
                said.append(f'{path} is not the result of its cell, which '
                            f'trains again; all it left is in {aside}')
        return said

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

    @property
    def _folders(self) -> list[Path]:
        return [self.out, self.out / 'cells', self.out / 'configs']

    def _result_files(self) -> list[Path]:
        return sorted(self.out.glob('cells/*/result.json'))

    def _check_place(self) -> Path:
        """The folder, or else that which it will be made in."""
        there = self.out.absolute()
        while not os.path.lexists(there):
            there = there.parent
        for path in (there, *self._folders):
            if os.path.lexists(path):
                if not path.is_dir():
                    raise ConfigError(f'--out: {path} is no folder')
                if not os.access(path, os.W_OK | os.X_OK):
                    raise ConfigError(f'--out: {path} cannot be written')
        return there

    def _check_plan(self) -> None:
        new = self.plan.fingerprint()
        old = read_plan(self._plan_file, new)
        what = difference(old, new, self.plan)
        if what is not None:
            raise ConfigError(
                f'--out: {self.out} holds results of another plan ({what}); '
                'give another folder, or add to the norms, batch sizes, '
                'seeds and learning rates of that plan')


def _read(path: Path) -> dict | None:
    """A cell's result; None if it is broken, or that of another."""
    row = read_row(path)
    if row is None or Cell.of(row).name != path.parent.name:
        return None
    return row


def _write(path: Path, content: dict) -> None:
    """Write JSON, all of it or nothing."""
    part = path.with_suffix('.part')
    part.write_text(json.dumps(content, indent=1) + '\n')
    part.replace(path)
