"""python -m frn_mmdet, in this process."""

import os
import sys
from pathlib import Path

import pytest

from frn_mmdet.__main__ import find_tools, main

ROOT = Path(__file__).parents[1]
DEMO = 'demo/retinanet_r18_fpn_frn_shapes.py'
NO_DATA = ['--cfg-options', 'train_dataloader.dataset.data_root=/no/such/']


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """What a tool changes of the process and writes where it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['frn_mmdet'])
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setenv('LOCAL_RANK', '0')  # mmdet's parser sets it


def ends(*args):
    """What a command ends with: its status, or the sentence it prints."""
    with pytest.raises(SystemExit) as error:
        main([*map(str, args)])
    return error.value.code


def test_tools_are_what_a_user_runs():
    tools = find_tools()
    assert {'train', 'test', 'dist_train', 'dist_test', 'compare_norms',
            'convert_checkpoint', 'make_shapes'} <= set(tools)
    assert {p.stem for suffix in ('py', 'sh')
            for p in (ROOT / 'tools').rglob(f'*.{suffix}')} == set(tools)
    assert list(tools)[0] == 'compare_norms'  # those of a training first


@pytest.mark.parametrize('args, status', [
    (['--help'], 0), (['-h'], 0), ([], 2)])
def test_help_lists_the_tools(capsys, args, status):
    assert ends(*args) == status
    text = capsys.readouterr().out
    for line in ("train               Train a detector: mmdet's",
                 'dist_train          Train on several GPUs.',
                 'make_shapes         Make a small COCO-format data set'):
        assert f'\n  {line}' in text


def test_an_unknown_tool_is_one_sentence():
    said = ends('trian', '--help')
    assert said.startswith('error: trian: frn_mmdet has no such tool; there')
    assert said.endswith(', '.join(find_tools())) and '\n' not in said


@pytest.mark.parametrize(
    'name', [n for n, p in find_tools().items() if p.suffix == '.py'])
def test_a_tool_has_its_own_help(capsys, name):
    assert ends(name, '--help') == 0
    assert f'usage: {name}.py ' in capsys.readouterr().out


def test_a_tool_of_before_is_found():
    assert 'export.py: error: config: no file none.py' in ends(
        'check_export', 'none.py', 'a.pth', 'a.onnx', '--images', '.')


def test_a_tool_works_with_its_arguments(tmp_path):
    main(['make_shapes', 'shapes', '--train', '1', '--val', '1', '--size',
          '64'])
    assert len([*(tmp_path / 'shapes').glob('*2017/*')]) == 2
    assert 'none.pth cannot be loaded' in ends(
        'convert_checkpoint', 'none.pth', 'out.pth')


@pytest.mark.parametrize('path', [
    f'frn_mmdet::{DEMO}', ROOT / 'configs' / DEMO])
def test_a_config_is_ours_or_a_file(path):
    # the look at the data comes last: all else has been understood
    assert 'data_root: no folder /no/such/' in ends('train', path, *NO_DATA)


def test_a_config_that_is_not_ours():
    assert ends('train', 'frn_mmdet::demo/none.py').startswith(
        'error: demo/none.py: frn_mmdet has no such config; see ')


def test_several_processes_start_by_the_shell(monkeypatch):
    called = []
    monkeypatch.setattr(os, 'execvp', lambda *args: called.append(args))
    monkeypatch.setattr('runpy.run_path', lambda *args, **kwargs: None)
    monkeypatch.delenv('PYTHON', raising=False)
    main(['dist_train', f'frn_mmdet::{DEMO}', '2', '--amp'])
    (program, (bash, script, config, *rest)), = called
    assert program == bash == 'bash' and rest == ['2', '--amp']
    assert Path(script).samefile(ROOT / 'tools/dist_train.sh')
    assert Path(config).samefile(ROOT / 'configs' / DEMO)
    assert os.environ['PYTHON'] == sys.executable
