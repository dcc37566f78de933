import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest

from frn_mmdet.compare import Cell
from frn_mmdet.compare import folder as folder_module
from frn_mmdet.compare.folder import Folder
from frn_mmdet.errors import ConfigError


def refused(folder, *words):
    with pytest.raises(ConfigError) as error:
        folder.check(1)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_results_are_kept(make_plan, tmp_path):
    plan = make_plan()
    folder = Folder(tmp_path / 'out', plan)
    folder.check(1)
    assert not folder.out.exists()  # a look changes nothing
    folder.write(['python', 'a.py'])
    about = json.loads((folder.out / 'plan.json').read_text())
    assert about['command'] == ['python', 'a.py']
    assert about['environment']['PyTorch'].startswith('2.')
    cell = Cell('FRN', 4, .012, 0)
    folder.write_config(cell)
    folder.cell(cell).mkdir(parents=True)
    row = dict(cell._asdict(), AP=.5, status='ok')
    folder.add(cell, row)
    again = Folder(folder.out, make_plan())
    again.check(1)
    assert again.results() == {cell: row}


@pytest.mark.parametrize('args, words', [
    (dict(norms=['FRN', 'IN']), ["norms ['FRN', 'BN']", "['FRN', 'IN']"]),
    (dict(batch_sizes=[4]), ['batch_sizes [4, 2]']),
    (dict(seeds=1), ['seeds 2, here 1']),
    (dict(same_lr=True), ['same_lr False, here True']),
    (dict(options={'train_cfg.max_epochs': 2}), ['another config']),
])
def test_another_plan_is_refused(make_plan, tmp_path, args, words):
    Folder(tmp_path, make_plan()).write([])
    refused(Folder(tmp_path, make_plan(**args)), 'results of another plan',
            *words)


def test_a_plan_may_grow(make_plan, tmp_path):
    Folder(tmp_path, make_plan()).write([])
    Folder(tmp_path, make_plan(
        ['FRN', 'GN:num_groups=8', 'BN'], [8, 4, 2], 3)).check(1)


def test_a_folder_of_something_else(make_plan, tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    refused(Folder(tmp_path, make_plan()), 'something else', str(tmp_path))
    refused(Folder(tmp_path / 'thesis.txt', make_plan()), 'is a file')


def test_no_space(make_plan, tmp_path):
    """More seeds than this disk has room for."""
    plan = make_plan(seeds=10**9)
    room = shutil.disk_usage(tmp_path).free
    assert plan.checkpoint_bytes() * plan.count > room
    refused(Folder(tmp_path / 'a/b', plan), 'GiB free', 'checkpoints take')
    assert not (tmp_path / 'a').exists()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_that_cannot_be_written(make_plan, tmp_path):
    tmp_path.chmod(0o500)
    refused(Folder(tmp_path / 'out', make_plan()), 'cannot be written')


def test_an_interrupted_write_leaves_the_old_file(make_plan, tmp_path):
    folder = Folder(tmp_path, make_plan())
    folder.write(['first'])
    with pytest.raises(TypeError):
        folder.write([object()])  # JSON fails on it, half-way
    assert json.loads((tmp_path / 'plan.json').read_text())[
        'command'] == ['first']


def test_one_command_at_a_time(make_plan, tmp_path, monkeypatch):
    """Also when the command is dead and one of its trainings is not."""
    monkeypatch.setattr(folder_module, 'LOCK_PATIENCE', .1)
    folder = Folder(tmp_path, make_plan())
    with folder.lock() as lock:
        orphan = subprocess.Popen(
            [sys.executable, '-c', 'input()'], stdin=subprocess.PIPE,
            pass_fds=(lock, ))
        with pytest.raises(ConfigError, match='still run'), folder.lock():
            pass
    with pytest.raises(ConfigError, match='still run'), folder.lock():
        pass
    orphan.communicate(b'\n')
    with folder.lock() as lock:
        assert fcntl.fcntl(lock, fcntl.F_GETFD) >= 0
