"""The whole command on cells of seconds: killed, continued, failing."""

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools/compare_norms.py'
CONFIG = ROOT / 'configs/small_batch/retinanet_r18_fpn_shapes.py'
STOCK = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

ALONE = [f'{split}_dataloader.{option}' for split in ('train', 'val')
         for option in ('num_workers=0', 'persistent_workers=False')]
# Images of 16 pixels, so that the coarsest map is 1x1: there BN cannot train
# on one image.
GRID = [
    CONFIG, '--norms', 'FRN', 'BN', '--batch-sizes', 2, 1, '--seeds', 1,
    '--jobs', 2, '--gpus', 0, '--cfg-options', *ALONE,
    'train_cfg.max_epochs=1', 'model.data_preprocessor.pad_size_divisor=16',
    'train_dataloader.dataset.pipeline.2.scale=(16,16)',
    'val_dataloader.dataset.pipeline.1.scale=(16,16)'
]


def children(process):
    """PIDs of what a process has started."""
    path = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    return [int(pid) for pid in path.read_text().split()]


def wait_for(condition, process, seconds=300):
    """Until something is so, and return it; the process must live on."""
    deadline = time.time() + seconds
    while time.time() < deadline:
        found = condition()
        if found:
            return found
        assert process.poll() is None, 'the command has ended'
        time.sleep(.05)
    raise TimeoutError


@pytest.fixture
def start(environment, tmp_path):
    """start(*args): the command, running; it dies with the test."""
    running = []

    def _start(*args):
        process = subprocess.Popen(
            [sys.executable, TOOL, *map(str, args)], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # A shell's background job, which CI may be, ignores Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        running.append(process)
        return process

    yield _start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.slow  # a dozen trainings
def test_killed_and_continued(start, tool, tmp_path):
    out = tmp_path / 'out'
    args = [*GRID, '--out', out]

    def done():
        return {path.parent.name: path.stat().st_mtime_ns
                for path in out.glob('cells/*/result.json')}

    # A training is killed: a row. Then the command itself is.
    command = start(*args)
    victim = wait_for(lambda: children(command), command)[0]
    os.kill(victim, signal.SIGKILL)
    killed, = wait_for(done, command)
    orphans = wait_for(
        lambda: len(children(command)) == 2 and children(command), command)
    command.kill()
    command.wait()
    for pid in orphans:  # none trains on
        deadline = time.time() + 20
        while Path(f'/proc/{pid}').exists() and time.time() < deadline:
            assert Path(f'/proc/{pid}/cmdline').exists()
            time.sleep(.05)
        assert not Path(f'/proc/{pid}').exists()
    # It goes on, until Ctrl-C after a cell more.
    before = done()
    command = start(*args)
    wait_for(lambda: len(done()) > len(before), command)
    command.send_signal(signal.SIGINT)
    text = command.communicate(timeout=60)[0]
    assert command.returncode == 128 + signal.SIGINT
    assert text.rstrip().endswith('Stopped; the same command goes on.')
    assert 'not trained yet' in (out / 'results.md').read_text()
    # What was killed is trained again when its result is broken.
    kept = done()
    assert before.items() <= kept.items()
    result = out / 'cells' / killed / 'result.json'
    half = result.read_bytes()[:99]
    result.write_bytes(half)
    text = tool('compare_norms.py', *args)
    assert f'{result} is not the result of its cell, which trains' in text
    aside, = out.glob('broken/*/result.json')
    assert aside.read_bytes() == half
    assert '[4/4]' in text
    after = done()
    del kept[killed]
    assert kept.items() <= after.items()  # none of them was trained again
    with (out / 'results.csv').open() as file:
        rows = {(r['norm'], r['batch']): r for r in csv.DictReader(file)}
    status = {key: row['status'] for key, row in rows.items()}
    assert status['BN', '1'].startswith(
        'crashed: ValueError: Expected more than 1 value per channel')
    assert len(status) == 4
    for key in (('FRN', '2'), ('FRN', '1'), ('BN', '2')):
        assert status[key] == 'ok'
        row = rows[key]
        assert 0 <= float(row['AP']) <= 1
        assert int(row['steps']) == 16 // int(key[1])
        assert 0 < float(row['loss']) < 100
        assert 2 < float(row['seconds']) < 300
        assert 100 < int(row['memory_MiB']) < 10000
    page = (out / 'results.md').read_text()
    assert '- BN, batch 1, LR 0.012, seed 0: crashed: ValueError' in page
    assert 'not trained yet' not in page
    assert (out / 'results.png').read_bytes().startswith(b'\x89PNG')
    # Once more: nothing is left to train.
    times = done()
    assert '[4/4]' not in tool('compare_norms.py', *args)
    assert done() == times
    # Nor is it when less is asked for; the report is of all that is there.
    said = tool('compare_norms.py', *args, '--norms', 'FRN',
                '--batch-sizes', 2)
    assert '= 1 trainings' in said and 'earlier commands' in said
    assert done() == times
    assert len((out / 'results.csv').read_text().splitlines()) == 1 + 4


@pytest.mark.slow  # four trainings
def test_two_equal_commands_at_once(start, tmp_path):
    """One trains; the other is kept out, or finds that all is done."""
    out = tmp_path / 'out'
    commands = [start(*GRID, '--out', out) for _ in range(2)]
    texts = [command.communicate(timeout=900)[0] for command in commands]
    for command, text in zip(commands, texts, strict=True):
        assert 'Traceback' not in text
        assert command.returncode == 0 or text.splitlines()[-1].startswith(
            'error: --out: trainings of another command still run')
    assert 0 in [command.returncode for command in commands]
    for log in out.glob('cells/*/log.txt'):
        assert log.read_text().count('mmengine - INFO - Checkpoints will be '
                                     'saved to') <= 1
    with (out / 'results.csv').open() as file:
        assert len(list(csv.DictReader(file))) == 4
    assert json.loads((out / 'plan.json').read_text())['plan']['seeds'] == 1


@pytest.mark.slow
def test_nothing_succeeded(tool, tmp_path):
    """The report says why, and the exit status that it did not."""
    out = tmp_path / 'out'
    args = [*GRID, '--out', out, '--norms', 'FRN', '--batch-sizes', 1,
            '--lr', 1e30]
    text = tool('compare_norms.py', *args, ok=False)
    assert '- FRN, batch 1, LR 1e+30, seed 0: diverged' in text
    assert text.rstrip().splitlines()[-1] == (
        f'error: none of 1 trainings has a result; {out}/results.md says why')


@pytest.fixture
def stock(shapes):
    """Arguments that train a stock config on two generated images."""
    options = [
        'model.roi_head.bbox_head.num_classes=3', 'model.backbone.depth=18',
        'model.neck.in_channels=[64,128,256,512]',
        'train_dataloader.dataset.indices=2', 'train_cfg.max_epochs=1',
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
        'val_dataloader.dataset.pipeline.1.scale=(64,64)',
        f'val_evaluator.ann_file={shapes}/annotations/instances_val2017.json'
    ]
    for split in ('train', 'val'):
        options += [
            f'{split}_dataloader.dataset.data_root={shapes}/',
            f'{split}_dataloader.dataset.metainfo.classes='
            '(circle,square,triangle)'
        ]
    return [STOCK, '--norms', 'FRN', 'FRN+WS', '--batch-sizes', 1, '--seeds',
            1, '--gpus', 0, '--cfg-options', *ALONE, *options]


def test_the_plan_of_a_stock_config(stock, tmp_path, capsys):
    out = tmp_path / 'out'
    runpy.run_path(str(TOOL))['main'](
        [*map(str, stock), '--out', str(out), '--dry-run'])
    text = capsys.readouterr().out
    assert '= 2 trainings' in text
    assert '| 1          | CPU  | 2     | 2      | 0.00125 |' in text
    assert 'FRN: 28 norms, 17 TLU' in text
    assert 'torchvision://resnet50 cannot start FRN+WS' in text
    assert 'A step of FRN at batch 1 takes' in text
    assert not out.exists()


@pytest.mark.slow
def test_a_stock_config(tool, stock, tmp_path):
    out = tmp_path / 'out'
    tool('compare_norms.py', *stock, '--out', out)
    with (out / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [(r['norm'], r['steps'], r['status']) for r in rows] == [
        ('FRN', '2', 'ok'), ('FRN+WS', '2', 'ok')]


@pytest.fixture
def refused(shapes, tmp_path, monkeypatch, capsys):
    """refused(*args): the sentence that the command ends with."""
    monkeypatch.setenv('SHAPES_ROOT', str(shapes))
    main = runpy.run_path(str(TOOL))['main']

    def _refused(*args):
        command = [CONFIG, '--norms', 'FRN', '--batch-sizes', 2, '--out',
                   tmp_path / 'out', *args]
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in command])
        text = str(end.value)
        assert text.startswith('error: ') and '\n' not in text
        assert not (tmp_path / 'out').exists()
        return text

    return _refused


@pytest.mark.parametrize('args, words', [
    (['--norms', 'FRM'], ["'FRM'", 'FRN, BN']),
    (['--norms', 'FRN:eps=['], ["'['"]),
    (['--norms', 'FRN:eps=tiny'], ['eps', "'tiny'"]),
    (['--norms', 'FRN:parts=backbone', 'FRN:parts=[backbone]'],
     ['FRN:parts=backbone and FRN:parts=[backbone]']),
    (['--lr', 'nan'], ['--lr', 'nan']),
    (['--seeds', '-1'], ['--seeds', '-1']),
    (['--out', '/dev/null/a'], ['/dev/null is no folder']),
    (['--batch-sizes', '4', '0'], ['--batch-sizes', '0']),
    (['--jobs', '0'], ['--jobs', '0']),
    (['--seeds', '1000000000'], ['GiB free']),
    (['--launcher', 'slurm', '--gpus', '0'], ['--gpus', 'slurm']),
    pytest.param(
        ['--gpus', '1'], ['--gpus: 1', 'has none'],
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU')),
])
def test_bad_input_is_one_sentence(refused, args, words):
    text = refused(*args)
    for word in words:
        assert word in text


def test_stopped_while_it_plans(tmp_path, capsys):
    """Ctrl-C, here from a config, which is code.

    Raised, since a signal may wait for a thread of pytest's workers.
    """
    config = tmp_path / 'config.py'
    config.write_text('raise KeyboardInterrupt\n')
    with pytest.raises(BaseException) as end:  # or it would end pytest
        runpy.run_path(str(TOOL))['main']([
            str(config), '--norms', 'FRN', '--batch-sizes', '2', '--out',
            str(tmp_path / 'out')])
    assert end.type is SystemExit
    assert end.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().out == 'Stopped before anything was trained.\n'
    assert not (tmp_path / 'out').exists()


def test_an_option_without_a_value(capsys):
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL))['main']([
            str(CONFIG), '--norms', 'FRN', '--batch-sizes', '2', '--out',
            'out', '--cfg-options', 'model'])
    assert end.value.code == 2
    assert '--cfg-options: KEY=VALUE' in capsys.readouterr().err


def test_a_folder_of_another_plan(refused, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'results.csv').write_text('mine')
    assert 'something else' in refused('--out', other)
    assert (other / 'results.csv').read_text() == 'mine'
