"""Every config of the repository resolves and says what its name says."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2] / 'configs'
ALL = sorted(p for p in ROOT.rglob('*.py') if '_base_' not in p.parts)
FRN = [p for p in ALL if p.parent.name == 'frn']


def load(path, monkeypatch, root=None):
    if root is None:
        monkeypatch.delenv('COCO_ROOT', raising=False)
    else:
        monkeypatch.setenv('COCO_ROOT', root)
    return Config.fromfile(path)


def test_there_are_configs():
    assert len(FRN) == 6


@pytest.mark.parametrize('path', ALL, ids=lambda p: p.stem)
def test_one_key_names_the_norm(path, monkeypatch):
    """Below model.norm_cfg none of our own files mentions a norm."""
    cfg = load(path, monkeypatch)
    assert cfg.model.type.startswith('frn_mmdet.')
    assert cfg.model.norm_cfg == dict(type='FRN')
    own = path.read_text()
    assert 'norm_cfg=dict(type=' not in own.replace(
        "    norm_cfg=dict(type='FRN'),", '')


@pytest.mark.parametrize('path', FRN, ids=lambda p: p.stem)
def test_name_says_batch_and_epochs(path, monkeypatch):
    gpus, images, times = map(
        int, re.search(r'_(\d)xb(\d)-(\d)x_', path.stem).groups())
    cfg = load(path, monkeypatch)
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr.base_batch_size == gpus * images
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(
        0.02 * gpus * images / 16)
    assert cfg.train_cfg.max_epochs == 12 * times
    assert cfg.param_scheduler[-1].end == 12 * times
    assert cfg.model.backbone.init_cfg is None


@pytest.mark.parametrize('path', FRN, ids=lambda p: p.stem)
@pytest.mark.parametrize('root', [None, '/somewhere/coco', '/somewhere/coco/'])
def test_one_variable_names_the_coco_folder(path, root, monkeypatch):
    cfg = load(path, monkeypatch, root)
    wanted = Path(root or 'data/coco')
    for split, year in (('train', 'train2017'), ('val', 'val2017'),
                        ('test', 'val2017')):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert Path(dataset.data_root) == wanted
        ann_file = wanted / f'annotations/instances_{year}.json'
        assert Path(dataset.data_root + dataset.ann_file) == ann_file
        if split != 'train':
            assert Path(cfg[f'{split}_evaluator'].ann_file) == ann_file
