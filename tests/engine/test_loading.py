"""Broken checkpoints, by all of mmengine's ways to load one."""

import json
import pickle
from importlib.util import find_spec

import pytest
import torch
from mmengine.model import BaseModel, BaseModule
from mmengine.runner import Runner, checkpoint, load_checkpoint
from torch import nn

from frn_mmdet import stack
from frn_mmdet.engine.loading import checkpoints_explained
from frn_mmdet.errors import ConfigError

NOBODY = 'http://127.0.0.1:9/a.pth'  # where no server listens


def write(path, kind):
    """A file that is no checkpoint, or no longer one."""
    torch.save(dict(state_dict=nn.Linear(9, 9).state_dict()), path)
    if kind == 'cut short':
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'text':
        path.write_text('version https://git-lfs.github.com/spec/v1\n')
    elif kind == 'results':  # of tools/test.py --out
        path.write_bytes(pickle.dumps([dict(scores=1)]))
    elif kind == 'list':
        torch.save([1, 2], path)
    elif kind == 'gone':
        path.unlink()
    return str(path)


KINDS = ('cut short', 'empty', 'text', 'results', 'list', 'gone')


@pytest.mark.parametrize('kind', KINDS)
def test_a_broken_file_is_named(tmp_path, kind):
    file = write(tmp_path / 'a.pth', kind)
    with pytest.raises(ConfigError, match='the checkpoint .*a.pth') as error, \
            checkpoints_explained():
        load_checkpoint(nn.Linear(9, 9), file)
    assert '\n' not in str(error.value)


class Toy(BaseModel):
    """A model of one weight for mmengine's runner."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, *args, mode=None, **kwargs):
        return dict(loss=self.layer.weight.sum())


@pytest.fixture
def runner(tmp_path):
    return Runner(
        Toy(), tmp_path / 'run', experiment_name=tmp_path.name,
        train_dataloader=dict(
            dataset=[0], sampler=dict(type='DefaultSampler'), batch_size=1),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        log_level='ERROR')


def test_a_training_names_it_too(tmp_path, runner):
    for load in runner.resume, runner.load_checkpoint:
        with pytest.raises(ConfigError, match='a.pth cannot be loaded'), \
                checkpoints_explained():
            load(write(tmp_path / 'a.pth', 'cut short'))


def test_weights_alone_cannot_be_resumed(tmp_path, runner):
    torch.save(dict(state_dict=runner.model.state_dict()), tmp_path / 'a.pth')
    with pytest.raises(ConfigError, match="has no 'meta'.* use load_from"), \
            checkpoints_explained():
        runner.resume(str(tmp_path / 'a.pth'))


def test_init_cfg_names_it_too(tmp_path):
    file = write(tmp_path / 'a.pth', 'text')
    part = BaseModule(dict(type='Pretrained', checkpoint=file))
    with pytest.raises(ConfigError, match='a.pth cannot be loaded'), \
            checkpoints_explained():
        part.init_weights()


def test_what_does_not_match_is_named(tmp_path):
    file = tmp_path / 'a.pth'
    torch.save(dict(state_dict=nn.Linear(9, 8, bias=False).state_dict()
                    | dict(a=1, b=2, c=3, d=4)), file)
    with pytest.raises(ConfigError) as error, checkpoints_explained():
        load_checkpoint(nn.Linear(9, 9), str(file), strict=True)
    assert str(error.value) == (
        f'the checkpoint {file} does not fit the model; keys missing: 1 '
        '(bias); unexpected: 4 (a, b, c, ...); of another size: 1 (weight)')


def test_other_errors_pass(tmp_path):
    with pytest.raises(KeyError, match='other'), checkpoints_explained():
        raise KeyError('other')

    class Refuses(nn.Linear):
        def _load_from_state_dict(self, *args):
            raise KeyError('its own')

    file = write(tmp_path / 'a.pth', 'whole')
    with pytest.raises(KeyError, match='its own'), checkpoints_explained():
        load_checkpoint(Refuses(9, 9), file)
    with checkpoints_explained():
        load_checkpoint(nn.Linear(9, 9), file)


@pytest.mark.parametrize('source', [
    NOBODY, 'open-mmlab://mine', pytest.param(
        'torchvision://mine', marks=pytest.mark.skipif(
            find_spec('torchvision') is not None, reason='it is here')),
])
def test_no_network_is_one_sentence(hub, tmp_path, monkeypatch, source):
    monkeypatch.setattr(stack, 'torchvision_urls', lambda: dict(mine=NOBODY))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    (tmp_path / 'open_mmlab.json').write_text(json.dumps(dict(mine=NOBODY)))
    with pytest.raises(ConfigError) as error, checkpoints_explained():
        load_checkpoint(nn.Linear(1, 1), source)
    said = str(error.value)
    assert said.startswith(
        f'the checkpoint {source} cannot be downloaded from {NOBODY}: [Errno')
    assert f'put that file into {hub}' in said
    assert 'broken' not in said and '\n' not in said


def test_the_process_that_downloads_for_all_has_ended(hub, monkeypatch):
    """To the others that is an error of their group."""
    monkeypatch.setattr(checkpoint, 'get_dist_info', lambda: (1, 2))
    with pytest.raises(ConfigError, match='downloads it for all has ended'), \
            checkpoints_explained():
        load_checkpoint(nn.Linear(1, 1), NOBODY)


def test_a_broken_download_is_named_with_its_place(hub):
    (hub / 'a.pth').write_text('<html>Please log in</html>')
    with pytest.raises(ConfigError, match='is broken or not one') as error, \
            checkpoints_explained():
        load_checkpoint(nn.Linear(1, 1), NOBODY)
    assert f'{hub}, delete it' in str(error.value)


@pytest.mark.parametrize('variable, source', [
    ('TORCH_HOME', NOBODY),
    ('MMENGINE_HOME', 'open-mmlab://resnext101_64x4d'),
])
def test_a_cache_that_cannot_be_written(hub, tmp_path, monkeypatch, variable,
                                        source):
    (tmp_path / 'file').touch()
    monkeypatch.setenv(variable, str(tmp_path / 'file/home'))
    with pytest.raises(ConfigError) as error, checkpoints_explained():
        load_checkpoint(nn.Linear(1, 1), source)
    for word in (source, str(tmp_path / 'file'), 'Not a directory', variable):
        assert word in str(error.value)


@pytest.mark.parametrize('source', ['open-mmlab://nosuch', 'mmcls://nosuch'])
def test_a_name_that_mmengine_does_not_know(source):
    with pytest.raises(ConfigError, match="no address of 'nosuch'"), \
            checkpoints_explained():
        load_checkpoint(nn.Linear(1, 1), source)
