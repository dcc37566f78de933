"""Train the cells of a comparison side by side."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .cell import Cell
from .folder import Folder
from .launch import command, environment
from .progress import (
    describe,
    describe_end,
    describe_left,
    fraction_done,
    seconds_left,
)
from .result import Ended, row_of
from .results_page import write_report
from .schedule import by_epoch

POLL = .2  # seconds between looks at the trainings
PATIENCE = 30  # seconds that a training has to stop
HEARTBEAT = 600  # seconds without a line
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass
class Training:
    """A process that trains a cell."""

    cell: Cell
    process: subprocess.Popen
    slot: int
    resumed: bool
    start: float
    rss_mib: float = 0.


class Runner:
    """Train what has no result yet, each cell in a process of its own.

    Args:
        folder (Folder): The comparison, and where it is kept.
        tool (Path): ``tools/train.py``.
        jobs (int): How many cells side by side.
        launcher (str): See :func:`command`.
        command (list[str]): What the user typed, to be kept.
        say (callable): Takes lines of progress.
    """

    def __init__(self, folder: Folder, tool: Path, jobs: int = 1,
                 launcher: str = 'pytorch', command: list[str] = (),
                 say: Callable[[str], None] = print) -> None:
        self.folder, self.comparison = folder, folder.comparison
        self.tool, self.jobs, self.launcher = tool, jobs, launcher
        self.command, self.say = list(command), say
        self._running: list[Training] = []
        self._stopped_by = 0
        self._said = time.monotonic()

    def run(self) -> int:
        """Train, and write the report.

        Returns:
            int: 0 if every cell has ended; otherwise the signal by which
            it was stopped.

        Raises:
            ConfigError: See :meth:`Folder.open`.
        """
        with self.folder.open(self.command) as lock, _signals(self._stop):
            for sentence in self.folder.set_broken_aside():
                self._say(sentence)
            results = self.folder.results()
            self._report(results)  # if it cannot be written, say so now
            try:
                while not self._stopped_by:
                    self._start_some(results, lock)
                    if not self._running:
                        break
                    for training in self._ended():
                        row = self._read(training)
                        results[training.cell] = row
                        self.folder.add(training.cell, row)
                        self._report(results)
                        self._say(describe_end(self.comparison, results, row)
                                  + self._left(results))
                    self._say_running(results)
                    time.sleep(POLL)
            finally:
                self._terminate()
            self._report(results)
        return self._stopped_by

    def _stop(self, number: int, _frame: object) -> None:
        self._stopped_by = number

    def _report(self, results: dict) -> None:
        write_report(self.folder.out, self.comparison, results, self.command)

    def _start_some(self, results: dict, lock: int) -> None:
        """Fill the free slots with cells that have no result."""
        if len(self._running) == self.jobs:
            return  # most polls find nothing to do
        running = {training.cell for training in self._running}
        waiting = (cell for cell in self.comparison.asked.cells(results)
                   if cell not in results and cell not in running)
        free = set(range(self.jobs)) - {t.slot for t in self._running}
        for slot, cell in zip(sorted(free), waiting, strict=False):
            self._running.append(self._start(cell, slot, lock))

    def _start(self, cell: Cell, slot: int, lock: int) -> Training:
        folder = self.folder.cell(cell)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.folder.write_config(cell)
        checkpoint = _checkpoint(folder, self._length(cell))
        words = command(self.tool, config, folder, self.comparison.gpus,
                        self.launcher, checkpoint)
        with (folder / 'log.txt').open('ab') as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment(slot, self.jobs, self.comparison.gpus,
                                self.launcher),
                start_new_session=True,  # Ctrl-C is this process's
                pass_fds=(lock, ), preexec_fn=_die_with_parent)
        return Training(cell, process, slot, checkpoint is not None,
                        time.monotonic())

    def _length(self, cell: Cell) -> int:
        """Epochs or steps of a cell, as its checkpoints count."""
        if by_epoch(self.comparison.cfg):
            return self.comparison.cfg.train_cfg.max_epochs
        return self.comparison.steps(cell.batch)

    def _ended(self) -> list[Training]:
        """Take the trainings that have ended off the list.

        What stopped this process may have stopped them, too (slurm signals
        all of a job's): then those that failed are no result.
        """
        ended = []
        for training in list(self._running):
            # wait4, for it tells the peak memory of this one process.
            pid, status, usage = os.wait4(training.process.pid, os.WNOHANG)
            if pid:
                training.process.returncode = os.waitstatus_to_exitcode(
                    status)
                training.rss_mib = usage.ru_maxrss / 1024
                self._running.remove(training)
                ended.append(training)
        if self._stopped_by:
            ended = [t for t in ended if t.process.returncode == 0]
        return ended

    def _read(self, training: Training) -> dict:
        folder = self.folder.cell(training.cell)
        return row_of(Ended(
            training.cell, folder, folder / 'log.txt',
            training.process.returncode, time.monotonic() - training.start,
            training.rss_mib, training.resumed, self.comparison.masks))

    def _left(self, results: dict) -> str:
        """The estimate, for the end of a line."""
        return describe_left(seconds_left(
            self.comparison, results, self._progress(), self.jobs))

    def _progress(self) -> list[tuple[Cell, float, float]]:
        """Of the cells that train: seconds, and the share that is done."""
        now = time.monotonic()
        return [(t.cell, now - t.start, 0. if t.resumed else fraction_done(
            self.folder.cell(t.cell), self.comparison.steps(t.cell.batch)))
                for t in self._running]

    def _say_running(self, results: dict) -> None:
        """A line now and then, for cells that take hours."""
        if time.monotonic() - self._said < HEARTBEAT:
            return
        running = ' and '.join(
            f'{describe(cell)} ({100 * fraction:.0f} %)'
            for cell, _, fraction in self._progress())
        self._say(f'training {running}{self._left(results)}')

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        self.say(line)

    def _terminate(self) -> None:
        """Stop what runs; it goes on with the next command."""
        for training in self._running:
            _signal(training.process, signal.SIGTERM)
        for training in self._running:
            try:
                training.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                _signal(training.process, signal.SIGKILL)
                training.process.wait()


def _checkpoint(folder: Path, length: int) -> Path | None:
    """The checkpoint from which there is something to do, if there is one.

    With that of the end, mmengine would neither train nor evaluate: such a
    cell was killed while it was evaluated, and starts again. The file is
    looked for in the folder, which may have been moved since.
    """
    last = folder / 'last_checkpoint'
    if not last.is_file():
        return None
    name = re.search(r'(?:epoch|iter)_(\d+)\.pth$',
                     last.read_text(errors='replace').strip())
    if name is None or int(name[1]) >= length:
        return None
    path = folder / name[0]
    return path if path.is_file() else None


@contextlib.contextmanager
def _signals(handler: Callable) -> Iterator[None]:
    """Hand the signals that end a process to a function, for a while.

    One that is ignored stays so: under nohup a closed terminal is no reason
    to stop.
    """
    before = {number: signal.getsignal(number)
              for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: old for number, old in before.items()
              if old is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _die_with_parent() -> None:
    """In a child before it starts: end when its parent is killed."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal(process: subprocess.Popen, number: int) -> None:
    """Send a signal to a process and those that it started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
