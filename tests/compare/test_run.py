"""What tests/tools/test_compare_norms.py, the whole command, does not see."""

import os
import signal
from pathlib import Path

import pytest

from frn_mmdet.compare import Runner
from frn_mmdet.compare.folder import Folder
from frn_mmdet.compare.run import _checkpoint, _signals

TRAIN = Path(__file__).parents[2] / 'tools/train.py'


def test_a_signal_is_handed_on_and_an_ignored_one_is_not():
    got = []
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    term = signal.getsignal(signal.SIGTERM)
    try:
        with _signals(lambda number, _frame: got.append(number)):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
        assert got == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is term
    finally:
        signal.signal(signal.SIGHUP, old)


@pytest.mark.parametrize('name, there, length, expected', [
    ('epoch_3.pth', True, 5, True),
    ('iter_30.pth', True, 50, True),
    ('epoch_5.pth', True, 5, False),  # killed while it was evaluated
    ('epoch_3.pth', False, 5, False),  # deleted
])
def test_resumes_where_there_is_something_left(tmp_path, name, there, length,
                                               expected):
    assert _checkpoint(tmp_path, length) is None
    (tmp_path / 'last_checkpoint').write_text(f'{tmp_path / name}\n')
    if there:
        (tmp_path / name).write_bytes(b'')
    assert _checkpoint(tmp_path, length) == (
        tmp_path / name if expected else None)


def test_a_folder_that_was_moved_resumes_from_its_own_checkpoint(tmp_path):
    """Though mmengine wrote down where the checkpoint was."""
    (tmp_path / 'last_checkpoint').write_text('work_dirs/old/epoch_3.pth')
    (tmp_path / 'epoch_3.pth').write_bytes(b'')
    assert _checkpoint(tmp_path, 5) == tmp_path / 'epoch_3.pth'


@pytest.mark.parametrize('content', [b'', b'\xff\xfe', b'epoch_x.pth'])
def test_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / 'last_checkpoint').write_bytes(content)
    assert _checkpoint(tmp_path, 5) is None


OPTIONS = {
    'train_cfg.max_epochs': 2,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
}


@pytest.mark.slow
def test_two_processes_a_training(compare, tmp_path):
    """torchrun, here with gloo: a GPU is not needed to count the steps."""
    comparison = compare(['FRN'], [2], 1, gpus=2, options=OPTIONS)
    folder = Folder(tmp_path / 'out', comparison)
    lines = []
    assert Runner(folder, TRAIN, say=lines.append).run() == 0
    row, = folder.results().values()
    assert row['status'] == 'ok', row
    assert row['steps'] == comparison.steps(2) == 2 * 4
    assert len(lines) == 1


@pytest.mark.slow
def test_a_killed_cell_goes_on_from_its_checkpoint(compare, tmp_path):
    """And the result is that of the whole schedule."""
    options = OPTIONS | {'train_cfg.max_epochs': 40}
    comparison = compare(['FRN'], [2], 1, options=options)
    folder = Folder(tmp_path / 'out', comparison)
    cell, = comparison.asked.cells({})

    class Stopped(Runner):
        """Stops as Ctrl-C would, once there is a checkpoint."""

        def _say_running(self, results):
            if (self.folder.cell(cell) / 'last_checkpoint').exists():
                os.kill(os.getpid(), signal.SIGINT)

    assert Stopped(folder, TRAIN).run() == signal.SIGINT
    assert not folder.results()
    assert Runner(folder, TRAIN, say=[].append).run() == 0
    row = folder.results()[cell]
    assert row['status'] == 'ok, resumed'
    assert row['steps'] == comparison.steps(2) == 40 * 8
    assert 'resumed epoch: ' in (folder.cell(cell) / 'log.txt').read_text()
