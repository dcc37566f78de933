"""The benchmarks on something tiny: what they report, not how fast it is."""

import json
import sys
from importlib import import_module
from pathlib import Path

import benchmark_detector
import benchmark_runtimes
import pytest

from frn_mmdet.errors import ConfigError

pytestmark = pytest.mark.slow  # of a script for developers
ROOT = Path(__file__).parents[2]
DEMO = ROOT / 'configs/demo/retinanet_r18_fpn_frn_shapes.py'


def test_norm(tool, tmp_path):
    file, picture = tmp_path / 'a/norm.json', tmp_path / 'b/norm.png'
    text = tool(
        'benchmark_norm.py', '--shapes', '2x32x16x16', '1x64x8x8',
        '--dtypes', 'float32', 'bfloat16', '--seconds', '0.1', '--device',
        'cpu', '--methods', 'FRN+TLU', 'BN+ReLU', 'GN+ReLU', 'plain',
        'rms_norm', 'x.clone()', '--json', file, '--plot', picture)
    assert '2x32x16x16, bfloat16, contiguous' in text
    report = json.loads(file.read_text())
    assert report['machine']['kernel'] == 'cpp'
    assert len(report['rows']) == 2 * 2 * 6
    for row in report['rows']:
        assert row['forward_ms'] > 0
        assert row['training_ms'] > 0
    saved = {r['method']: r['saved'] for r in report['rows']
             if (r['shape'], r['dtype']) == ('2x32x16x16', 'float32')}
    # x and one number a row; x and y; nothing.
    assert saved['FRN+TLU'] == 1 + 1 / 256
    assert saved['FRN+TLU'] == saved['plain']
    assert saved['BN+ReLU'] == pytest.approx(2, abs=.02)
    assert saved['rms_norm'] > 2
    assert saved['x.clone()'] == 0
    peak = {r['method']: r['peak'] for r in report['rows']
            if (r['shape'], r['dtype']) == ('2x32x16x16', 'float32')}
    assert 2 <= peak['FRN+TLU'] < 2.1  # y, and the gradient of x
    assert peak['FRN+TLU'] < peak['BN+ReLU']
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_detector(tool, tmp_path):
    file = tmp_path / 'detector.json'
    text = tool('benchmark_detector.py', DEMO, '--norms', 'FRN:tlu=false',
                'BN', '--batch-sizes', 1, '--size', 256, 192, '--seconds',
                '0.1', '--device', 'cpu', '--json', file)
    assert 'Images of 256x192' in text
    report = json.loads(file.read_text())
    frn, bn = report['rows']
    assert (frn['norm'], bn['norm']) == ('FRN:tlu=false', 'BN')
    for row in (frn, bn):
        assert row['config'] == 'retinanet'
        assert 0 < row['test_ms']
        assert row['peak'] > 3 * 4 * 256 * 192
    # Both keep the same maps, BN a mean and a variance beside.
    assert frn['peak'] <= bn['peak']


def test_groups_that_do_not_divide_are_one_sentence(tool):
    args = ['benchmark_detector.py', DEMO, '--norms', 'BN', '--batch-sizes',
            1, '--size', 64, 64, '--seconds', '0.1']
    text = tool(*args[:3], 'GN', *args[3:], ok=False)
    assert 'Traceback' not in text
    assert text.strip().splitlines()[-1].startswith(
        'error: model.norm_cfg.num_groups')
    tool(*args[:3], 'GN:num_groups=8', *args[3:])


@pytest.mark.parametrize('text, words', [
    ('model = dict(', 'cannot be read'), ('x = 1', 'has no model'),
    ('model = dict(type="frn_mmdet.RetinaNet")', 'has no model with a back'),
])
def test_no_detector_is_one_sentence(tmp_path, text, words):
    main = benchmark_detector.main
    config = tmp_path / 'config.py'
    config.write_text(text)
    with pytest.raises(ConfigError, match=f'config.py {words}'):
        main([str(config), '--norms', 'FRN', '--threads', '1'])


@pytest.mark.parametrize('args, words', [
    (['benchmark_norm.py', '--shapes', '2x64x8'], ['2x64x8', 'NxCxHxW']),
    (['benchmark_norm.py', '--shapes', '2x63x8x8'], ['divisible by 32']),
    (['benchmark_norm.py', '--plot', 'x.png', '--methods', 'FRN+TLU'],
     ['BN+ReLU']),
    (['benchmark_detector.py', 'none.py'], ['no file none.py']),
    *((['benchmark_norm.py', '--shapes', shape], [shape, 'from 1 up'])
      for shape in ('0x32x8x8', '2x0x8x8', '2x32x0x8', '2x-32x8x8',
                    '2x32x8.5x8', '2x32x8x8x8', '')),
    (['benchmark_norm.py', '--plot', 'x.foo'], ['x.foo', '.png, .pdf or']),
    (['benchmark_norm.py', '--plot', 'x'], ['.png, .pdf or .svg']),
    (['benchmark_norm.py', '--json', '/'], ['--json: / is a folder']),
    (['benchmark_norm.py', '--json', '/dev/null/x'], ['cannot be written']),
    *(([tool, '--device', name], [repr(name), 'is not here: cpu, or a GPU'])
      for tool in ('benchmark_norm.py', 'benchmark_detector.py')
      for name in ('foo', 'meta', 'mps', 'cuda:99', '')),
    *(([tool, '--threads', number], [repr(number), '1 or more'])
      for tool in ('benchmark_norm.py', 'benchmark_detector.py')
      for number in ('0', '-1', '1.5', 'two')),
    *(([tool, f'--seconds={number}'], [repr(number), '0 or more'])
      for tool in ('benchmark_norm.py', 'benchmark_detector.py')
      for number in ('nan', 'inf', '-1', 'soon')),
    (['benchmark_detector.py', '--batch-sizes', '0'], ["'0'", '1 or more']),
    (['benchmark_detector.py', '--size', '0', '64'], ["'0'", '1 or more']),
    (['benchmark_detector.py', '--norms', 'SyncBN:eps=1.0', '--device',
      'cpu'], ['SyncBN:eps=1.0', 'GPUs']),
    (['benchmark_detector.py', '--norms', 'SyncBN', '--device', 'cpu'],
     ['SyncBN', 'GPUs']),
])
def test_a_wrong_argument_is_one_sentence(capsys, args, words):
    main = import_module(args[0].removesuffix('.py')).main
    with pytest.raises(SystemExit) as stop:
        main(args[1:])
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    for word in words:
        assert word in last


def test_runtimes(tool, tmp_path):
    file = tmp_path / 'runtimes.json'
    text = tool('benchmark_runtimes.py', DEMO, '--norms', 'FRN', 'BN',
                '--runtimes', 'pytorch', 'openvino', '--size', 128, 192,
                '--batch', 2, '--seconds', '0.1', '--json', file)
    assert '2 x 128x192' in text
    rows = json.loads(file.read_text())['rows']
    assert [(row['runtime'], row['norm']) for row in rows] == [
        ('pytorch', 'FRN'), ('pytorch', 'BN'),
        ('openvino', 'FRN'), ('openvino', 'BN')]
    for row in rows:
        assert row['ms'] > 0
        assert row['peak'] > 2 * 3 * 4 * 128 * 192


def test_a_missing_runtime_is_said_before_the_work(capsys, monkeypatch):
    main = benchmark_runtimes.main
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(ConfigError, match='pip install openvino'):
        main(['--norms', 'FRN'])
    assert 'exporting' not in capsys.readouterr().err
