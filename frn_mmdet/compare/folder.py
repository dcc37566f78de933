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
from typing import TextIO

from mmengine.utils.dl_utils import collect_env

import frn_mmdet

from ..errors import ConfigError
from .cell import Cell
from .comparison import Comparison
from .grid import Grid
from .plan_file import difference, grid_of, read_plan
from .result import read_row

GIB = 2**30
PLAN, PART, LOCK = 'plan.json', 'plan.part', '.lock'
LOCK_PATIENCE = 20  # seconds that a dead command's trainings have to end


class Folder:
    """Where a comparison is kept.

    Args:
        out (Path): The folder. It need not be there.
        comparison (Comparison): What is kept there.
    """

    def __init__(self, out: Path, comparison: Comparison) -> None:
        self.out = out
        self.comparison = comparison

    def check(self, jobs: int) -> None:
        """Refuse a folder in which what is asked cannot be trained.

        Nothing is written.

        Args:
            jobs (int): How many trainings run side by side.

        Raises:
            ConfigError: If it holds another plan or something else, cannot
                be written, or has no room.
        """
        there = self._check_place()
        self._check_plan()
        # Each cell keeps one checkpoint, and writes the next before it
        # removes the last.
        asked = self.comparison.asked
        done = sum(cell in asked for cell in self.results())
        need = (asked.count - done + jobs) * self.comparison.checkpoint_bytes()
        free = shutil.disk_usage(there).free
        if free < need:
            raise ConfigError(
                f'--out: {there} has {free / GIB:.1f} GiB free and the '
                f'checkpoints take {need / GIB:.1f} GiB; give another folder '
                'or add --cfg-options default_hooks.checkpoint=None')

    @contextlib.contextmanager
    def open(self, command: list[str]) -> Iterator[int]:
        """Keep a second command out while this one trains.

        Trainings inherit the lock, so one that outlives its command keeps
        the next from training the same cell beside it. All that a command
        writes, it writes in here.

        Args:
            command (list[str]): What the user typed, to be kept.

        Yields:
            int: The file descriptor of the lock, to hand on.

        Raises:
            ConfigError: If the folder is taken, another command has begun
                another plan there meanwhile, or nothing can be written.
        """
        with self._lock() as file:
            self._check_plan()
            self._write_plan(command)
            yield file.fileno()

    def cell(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.out / 'cells' / cell.name

    def write_config(self, cell: Cell) -> Path:
        """Write a cell's config, and return its file."""
        path = self.out / 'configs' / f'{cell.name}.py'
        self.comparison.cell_config(cell, self.cell(cell)).dump(path)
        return path

    def add(self, cell: Cell, row: dict) -> None:
        """Keep what became of a cell."""
        _write(self.cell(cell) / 'result.json', row)

    def results(self) -> dict[Cell, dict]:
        """What became of the cells that have ended, and are compared."""
        rows = map(_read, self._result_files())
        found = {Cell.of(row): row for row in rows if row is not None}
        return {cell: row for cell, row in found.items()
                if cell in self.comparison.whole}

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

    def _lock(self) -> TextIO:
        """The lock, once it is this command's; closed, it is free again."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            file = (self.out / LOCK).open('w')
        except OSError as error:
            raise self._unwritable(error) from error
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.close()
                    raise ConfigError(
                        f'--out: trainings of another command still run in '
                        f'{self.out}; wait for them or stop them') from None
                time.sleep(.2)

    def _write_plan(self, command: list[str]) -> None:
        """Write the plan, and what it ran on."""
        about = {'frn_mmdet': frn_mmdet.__version__}
        about |= {key: str(value) for key, value in collect_env().items()}
        try:
            _write(self._plan_file, dict(
                command=command, config=self.comparison.config,
                plan=self.comparison.fingerprint(), environment=about))
            for path in self._folders:
                path.mkdir(exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f'--out: {self.out} cannot be written: {error}')

    @property
    def _plan_file(self) -> Path:
        return self.out / PLAN

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
        """Refuse another plan, and what is no comparison."""
        if not self._plan_file.is_file():
            names = {path.name for path in self.out.glob('*')}
            if names - {LOCK, PART}:  # which are there before the plan is
                raise ConfigError(
                    f'--out: {self.out} holds something else than a '
                    'comparison; give another folder')
            return
        old = read_plan(self._plan_file)
        what = difference(old, self.comparison.fingerprint(), self.comparison)
        if what is not None:
            raise ConfigError(
                f'--out: {self.out} holds results of another plan ({what}); '
                'give another folder')
        if self.comparison.whole.joined(grid_of(old)) != self.comparison.whole:
            raise ConfigError(
                f'--out: another command has added to {self.out} since this '
                'one looked; start it again')


def begun_in(out: Path) -> Grid | None:
    """What earlier commands asked for in a folder; None if there is nothing.

    Raises:
        ConfigError: If that cannot be told.
    """
    path = out / PLAN
    try:
        return grid_of(read_plan(path)) if path.is_file() else None
    except OSError as error:
        raise ConfigError(f'--out: {out} cannot be read: {error}') from error


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
