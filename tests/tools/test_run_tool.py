"""What tools/train.py and tools/test.py see before mmdet's tool begins."""

import sys
from pathlib import Path

import pytest

from frn_mmdet.engine.run_tool import run_mmdet_tool

ROOT = Path(__file__).parents[2]
C = str(ROOT / 'configs/demo/retinanet_r18_fpn_frn_shapes.py')
SPLITS = {'train.py': ('train', 'val'), 'test.py': ('test', )}
# The look at the data comes last: who is told this has been understood.
NO_DATA = [f'{split}_dataloader.dataset.data_root=/no/such/'
           for split in ('train', 'test')]


@pytest.fixture
def says(shapes, tmp_path, monkeypatch):
    """says(tool, *args): the sentence that a tool ends with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('SHAPES_ROOT', str(shapes))
    monkeypatch.setenv('LOCAL_RANK', '0')  # mmdet's parser sets it
    Path('a.pth').touch()
    Path('file').touch()
    Path('broken.py').write_text('model = (\n')
    Path('orphan.py').write_text("_base_ = './none_base.py'\n")

    def _says(tool, *args):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
        with pytest.raises(SystemExit) as error:
            run_mmdet_tool(tool, SPLITS[tool])
        return error.value.code

    return _says


@pytest.mark.parametrize('args', [
    ['train.py', C, '--work-dir', 'wd', '--cfg-options', *NO_DATA],
    ['train.py', '--work-dir', 'wd', C, '--cfg-options', *NO_DATA],
    ['train.py', '--work-dir=wd', C, '--cfg-options', *NO_DATA],
    ['train.py', '--resume', 'auto', C, '--cfg-options', *NO_DATA],
    ['train.py', '--resume', 'a.pth', C, '--cfg-options', *NO_DATA],
    ['train.py', '--resume', '--cfg-options', *NO_DATA, '--amp', C],
    ['train.py', '--amp', '--auto-scale-lr', C, '--cfg-options', *NO_DATA],
    ['train.py', '--cfg-options', *NO_DATA, '--launcher', 'none', C],
    ['train.py', '--cfg-options', *NO_DATA, '--', C],
    ['train.py', '--cfg-options', NO_DATA[0], '--resume', 'auto',
     '--cfg-options', NO_DATA[1], '--', C],
    ['train.py', '--work', 'wd', '--cfg', *NO_DATA, '--lau', 'none', C],
    ['train.py', f'--cfg-options={NO_DATA[0]}', C],
    ['train.py', '--local_rank', '0', C, '--cfg-options', *NO_DATA],
    ['train.py', '--local-rank=0', C, '--cfg-options', *NO_DATA],
    ['test.py', C, 'a.pth', '--tta', '--cfg-options', *NO_DATA],
    ['test.py', '--work-dir', 'wd', C, 'a.pth', '--cfg-options', *NO_DATA],
    ['test.py', '--show-dir', 'd', C, '--out', 'o.pkl', 'a.pth',
     '--cfg-options', *NO_DATA],
    ['test.py', '--wait-time', '1', '--cfg-options', *NO_DATA, '--tta', C,
     'a.pth'],
    ['test.py', '--cfg-options', *NO_DATA, '--launcher', 'none', C, 'a.pth'],
    ['test.py', C, 'https://host/a.pth', '--cfg-options', *NO_DATA],
])
def test_arguments_stand_in_any_order(says, args):
    said = says(*args)
    assert said.startswith('error: ')
    assert 'dataset.data_root: no folder /no/such/' in said


@pytest.mark.parametrize('args, words', [
    (['train.py', 'none.py'], 'config: no file none.py'),
    (['train.py', '--work-dir', 'wd', 'none.py'], 'config: no file none.py'),
    (['train.py', '.'], 'config: no file .'),
    (['train.py', 'broken.py'], 'config: broken.py: '),
    (['train.py', 'orphan.py'], 'none_base.py'),
    (['train.py', C, '--resume', 'none.pth'], 'resume: no file none.pth'),
    (['test.py', C, 'none.pth'], 'checkpoint: no file none.pth'),
    (['train.py', '--cfg-options', 'a=1', C],
     'the config stands before it, or behind another option'),
    (['train.py', C, '--cfg-options', 'model.type.name=1'],
     '--cfg-options: type='),
    (['train.py', C, '--cfg-options', 'a=[dict(b=1,c=2)]'], 'no dict'),
    (['train.py', C, '--cfg-options',
      'train_dataloader.dataset.metainfo.classes=[kiwi]'],
     'metainfo.classes: of the classes kiwi none is a category'),
    (['train.py', C, '--work-dir', 'file'], 'work_dir: file cannot be'),
    (['train.py', C, '--work-dir', 'file/a/b'], 'work_dir: file/a/b cannot'),
    (['train.py', C, '--cfg-options', 'work_dir=file'], 'work_dir: file can'),
    (['test.py', C, 'a.pth', '--work-dir', 'file'], 'work_dir: file cannot'),
    (['test.py', C, 'a.pth', '--out', 'a.json'], '--out: a.json does not end'),
    (['test.py', C, 'a.pth', '--out', 'file/a.pkl'], '--out: file cannot be'),
    (['train.py', C, '--cfg-options', 'val_evaluator.ann_file=none.json'],
     'val_evaluator.ann_file: no file none.json'),
    (['test.py', C, 'a.pth', '--work-dir', 'wd'],
     'the checkpoint a.pth cannot be loaded'),
    # of the model, which is built last
    (['train.py', C, '--cfg-options', 'model.norm_cfg=XN'],
     "model.norm_cfg: unknown norm 'XN'; choose one of FRN, BN"),
    (['train.py', C, '--cfg-options', 'model.norm_cfg=SyncBN'],
     'model.norm_cfg: SyncBN trains on GPUs in a process group, and here'),
    (['train.py', C, '--cfg-options', 'model.norm_cfg.num_groups=8'],
     "model.norm_cfg: FRN takes no 'num_groups'"),
])
def test_a_wrong_argument_is_one_sentence(says, args, words):
    said = says(*args)
    assert said.startswith('error: ') and words in said
    assert '\n' not in said


def test_what_is_refused_has_made_no_folder(says, tmp_path):
    for args in (['train.py', C, '--work-dir', 'wd', '--cfg-options',
                  *NO_DATA],
                 ['test.py', C, 'a.pth', '--work-dir', 'wd', '--out', 'a']):
        assert says(*args).startswith('error: ')
        assert not (tmp_path / 'wd').exists()


@pytest.mark.parametrize('args', [
    ['train.py', '--no-such', C], ['train.py'], ['train.py', '--resume', C],
    ['test.py', C], ['train.py', C, '--launcher', 'other']])
def test_usage_is_mmdets(says, capsys, args):
    assert says(*args) == 2
    assert 'usage: ' in capsys.readouterr().err


@pytest.mark.parametrize('tool, option', [
    ('train.py', '--auto-scale-lr'), ('test.py', '--show-dir')])
def test_help_is_mmdets(says, capsys, tool, option):
    assert says(tool, C, '--help') == 0
    assert option in capsys.readouterr().out


def test_home_is_a_folder(says, tmp_path, monkeypatch):
    """mmengine knows ~ in a checkpoint's path, but not in a config's."""
    monkeypatch.setenv('HOME', str(tmp_path))
    assert 'no folder /no/such/' in says(
        'test.py', C, '~/a.pth', '--cfg-options', *NO_DATA)
    assert 'no file ~/mine.py' in says('test.py', '~/mine.py', '~/a.pth')
