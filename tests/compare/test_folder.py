import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest

from frn_mmdet.compare import Cell
from frn_mmdet.compare import folder as folder_module
from frn_mmdet.compare.folder import Folder, begun_in
from frn_mmdet.compare.result import COLUMNS, Column
from frn_mmdet.errors import ConfigError


def refused(folder, *words):
    with pytest.raises(ConfigError) as error:
        folder.check(1)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


def begin(folder, command=()):
    """What a command writes before it trains."""
    with folder.open(list(command)):
        pass


def result(cell, **more):
    """A row as a training leaves it."""
    return dict.fromkeys(COLUMNS) | cell._asdict() | dict(
        AP=.5, seconds=9., memory_MiB=600, status='ok') | more


def test_results_are_kept(compare, tmp_path):
    comparison = compare()
    folder = Folder(tmp_path / 'out', comparison)
    folder.check(1)
    assert not folder.out.exists()  # a look changes nothing
    begin(folder, ['python', 'a.py'])
    about = json.loads((folder.out / 'plan.json').read_text())
    assert about['command'] == ['python', 'a.py']
    assert about['environment']['PyTorch'].startswith('2.')
    cell = Cell('FRN', 4, .012, 0)
    folder.write_config(cell)
    folder.cell(cell).mkdir()
    row = result(cell)
    folder.add(cell, row)
    again = Folder(folder.out, compare())
    again.check(1)
    assert again.results() == {cell: row}


def break_result(folder, cell, content):
    """A cell whose result is this; return its folder."""
    path = folder.cell(cell)
    path.mkdir(parents=True)
    (path / 'log.txt').write_text(f'log of {cell}')
    (path / 'result.json').write_bytes(content)
    return path


def test_a_broken_result_is_moved_aside(compare, tmp_path):
    comparison = compare(['BN'])
    cell, good = Cell('BN', 4, .012, 0), Cell('BN', 4, .012, 1)
    row = result(cell)
    of_another = result(Cell('BN', 2, .012, 0))
    for i, content in enumerate([
            b'', b'{"norm": "FRN", "ba', b'\xff\xfe', b'[]', b'7', b'{}',
            b'null', *(json.dumps(value).encode() for value in (
                dict(norm='BN', AP=.5), row | dict(AP='high'),
                row | dict(segm_AP='low'), row | dict(norm=3),
                row | dict(AP=None), row | dict(seconds=None), of_another))]):
        folder = Folder(tmp_path / str(i), comparison)
        begin(folder)
        broken = break_result(folder, cell, content)
        folder.cell(good).mkdir()
        folder.add(good, result(good))
        assert folder.results() == {good: result(good)}
        said, = folder.set_broken_aside()
        assert str(broken / 'result.json') in said and 'trains again' in said
        assert not broken.exists()
        kept, = (folder.out / 'broken').iterdir()
        assert str(kept) in said
        assert (kept / 'result.json').read_bytes() == content
        assert (kept / 'log.txt').read_text() == f'log of {cell}'
        assert folder.set_broken_aside() == []
        assert folder.results() == {good: result(good)}


def test_a_result_that_is_not_of_the_plan_is_left_alone(compare, tmp_path):
    """A seed more would be part of the mean, another norm of no table."""
    folder = Folder(tmp_path, compare(['BN'], seeds=2))
    begin(folder)
    for cell in (Cell('BN', 4, .012, 2), Cell('IN', 4, .012, 0)):
        break_result(folder, cell, json.dumps(result(cell)).encode())
    assert folder.results() == {}
    assert folder.set_broken_aside() == []


def test_a_folder_of_something_else(compare, tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    refused(Folder(tmp_path, compare()), 'something else', str(tmp_path))


def test_what_is_no_folder(compare, tmp_path):
    comparison = compare(['BN'])
    for name in ('kept', 'begun'):
        (tmp_path / name).mkdir()
    for name in ('file', 'kept/cells', 'begun/configs'):
        (tmp_path / name).write_text('mine')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    (tmp_path / 'nowhere').symlink_to(tmp_path / 'no/such')
    for out, bad in (('file', 'file'), ('file/a/b', 'file'), ('loop', 'loop'),
                     ('loop/a', 'loop'), ('nowhere', 'nowhere'),
                     ('kept', 'kept/cells'), ('begun', 'begun/configs')):
        refused(Folder(tmp_path / out, comparison), '--out',
                f'{tmp_path / bad} is no folder')


def test_what_no_look_foresees(compare, tmp_path):
    folder = Folder(tmp_path / ('long' * 100), compare(['BN']))
    with pytest.raises(ConfigError, match='--out: .* cannot be written'):
        begin(folder)


def test_a_folder_within_that_cannot_be_written_to(compare, tmp_path):
    folder = Folder(tmp_path, compare(['BN']))
    (tmp_path / 'plan.part').mkdir()
    with pytest.raises(ConfigError, match='--out: .* cannot be written'):
        begin(folder)


def test_no_space(compare, tmp_path):
    """More seeds than this disk has room for."""
    comparison = compare(seeds=10**9)
    room = shutil.disk_usage(tmp_path).free
    assert comparison.checkpoint_bytes() * comparison.asked.count > room
    refused(Folder(tmp_path / 'a/b', comparison), 'GiB free',
            'checkpoints take')
    assert not (tmp_path / 'a').exists()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_that_cannot_be_written(compare, tmp_path):
    tmp_path.chmod(0o500)
    refused(Folder(tmp_path / 'out', compare()), 'cannot be written')


def test_an_interrupted_write_leaves_the_old_file(compare, tmp_path):
    folder = Folder(tmp_path, compare())
    begin(folder, ['first'])
    with pytest.raises(TypeError):
        begin(folder, [object()])  # JSON fails on it, half-way
    assert json.loads((tmp_path / 'plan.json').read_text())[
        'command'] == ['first']


def test_a_result_of_before_a_column_was_new(
        compare, tmp_path, monkeypatch):
    """It is none, and the cell is not trained again."""
    folder = Folder(tmp_path, compare(['BN']))
    begin(folder)
    cell = Cell('BN', 4, .012, 0)
    old = {key: value for key, value in result(cell).items()
           if key not in ('memory_MiB', 'AP75')}
    break_result(folder, cell, json.dumps(old).encode())
    monkeypatch.setitem(COLUMNS, 'new', Column(lambda ended: 1))
    assert folder.results() == {cell: old | dict(
        memory_MiB=None, AP75=None, new=None)}
    assert folder.set_broken_aside() == []


def test_a_result_of_after_a_column_was_new(compare, tmp_path):
    folder = Folder(tmp_path, compare(['BN']))
    begin(folder)
    cell = Cell('BN', 4, .012, 0)
    break_result(folder, cell, json.dumps(result(cell, new='x')).encode())
    assert folder.results() == {cell: result(cell)}


def test_one_command_at_a_time(compare, tmp_path, monkeypatch):
    """Also when the command is dead and one of its trainings is not."""
    monkeypatch.setattr(folder_module, 'LOCK_PATIENCE', .1)
    folder = Folder(tmp_path, compare())
    with folder.open([]) as lock:
        orphan = subprocess.Popen(
            [sys.executable, '-c', 'input()'], stdin=subprocess.PIPE,
            pass_fds=(lock, ))
        with pytest.raises(ConfigError, match='still run'), folder.open([]):
            pass
    with pytest.raises(ConfigError, match='still run'), folder.open([]):
        pass
    orphan.communicate(b'\n')
    with folder.open([]) as lock:
        assert fcntl.fcntl(lock, fcntl.F_GETFD) >= 0


def everything_in(folder):
    return {path: path.stat().st_mtime_ns if path.is_dir() else
            path.read_bytes() for path in folder.rglob('*')}


def test_a_command_that_is_kept_out_leaves_no_trace(
        compare, tmp_path, monkeypatch):
    """The one that trains could not go on with another plan.json."""
    monkeypatch.setattr(folder_module, 'LOCK_PATIENCE', .1)
    folder = Folder(tmp_path, compare(['BN']))
    with folder.open(['first']):
        before = everything_in(tmp_path)
        other = Folder(tmp_path, compare(
            ['IN'], [1], 3, begun=begun_in(tmp_path)))
        other.check(1)
        with pytest.raises(ConfigError, match='still run'), \
                other.open(['second']):
            pass
        assert everything_in(tmp_path) == before
    Folder(tmp_path, compare(['BN'], begun=begun_in(tmp_path))).check(1)


def test_two_that_begin_at_once(compare, tmp_path, monkeypatch):
    """The second finds a lock and no plan yet, then another's."""
    monkeypatch.setattr(folder_module, 'LOCK_PATIENCE', .1)
    out = tmp_path / 'out'
    one, two, other = (Folder(out, compare(norms)) for norms in (
        ['BN'], ['BN'], ['IN']))
    with one._lock():
        two.check(1)
    with one.open(['first']):
        two.check(1)
        with pytest.raises(ConfigError, match='still run'), two.open([]):
            pass
    before = (out / 'plan.json').read_bytes()
    with two.open(['second']):  # the first has ended meanwhile
        assert (out / 'plan.json').read_bytes() != before
    before = everything_in(out)
    with pytest.raises(ConfigError, match='start it again'), other.open([]):
        pass
    assert everything_in(out) == before
