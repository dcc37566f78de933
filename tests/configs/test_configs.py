"""Every config of the repository resolves and says what its name says."""

import re
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2] / 'configs'
ALL = sorted(p for p in ROOT.rglob('*.py') if '_base_' not in p.parts)
EPOCHS = [p for p in ALL if p.parent.name in ('frn', 'mask_rcnn')]
# Of a comparison the norm is the command line's, and in no name.
NAMED = [p for p in ALL
         if p.parent.name not in ('small_batch', 'pretrained', 'imagenet')]
COCO = [p for p in ALL if p.stem.endswith('_coco')]


def load(path, monkeypatch, root=None):
    if root is None:
        monkeypatch.delenv('COCO_ROOT', raising=False)
    else:
        monkeypatch.setenv('COCO_ROOT', root)
    return _load(path, root)


@cache
def _load(path, root):
    return Config.fromfile(path)


def test_there_are_configs():
    assert len(EPOCHS) == 14 + 4 + 1 + 11
    assert len(COCO) == 14 + 4 + 1 + 11 + 12


@pytest.mark.parametrize('path', NAMED, ids=lambda p: p.stem)
def test_one_key_names_the_norm(path, monkeypatch):
    """Below model.norm_cfg none of our own files mentions a norm."""
    cfg = load(path, monkeypatch)
    assert cfg.model.type.startswith('frn_mmdet.')
    ws = dict(ws=True) if '-ws-' in path.stem else {}
    assert cfg.model.norm_cfg == dict(type=cfg.model.norm_cfg.type, **ws)
    name = re.search(r'_(frn|gn|bn|syncbn)[-_]', path.stem)[1]
    assert cfg.model.norm_cfg.type.lower() == name
    own = re.sub(r"norm_cfg=dict\((type='\w+'|ws=True)\)", '',
                 path.read_text(), count=1)
    assert 'norm_cfg' not in own


@pytest.mark.parametrize('path', EPOCHS, ids=lambda p: p.stem)
def test_name_says_batch_and_epochs(path, monkeypatch):
    gpus, images, counts, times = (
        int(n or 1) for n in re.search(
            r'_(\d)xb(\d)(?:-acc(\d+))?-(\d)x_', path.stem).groups())
    cfg = load(path, monkeypatch)
    assert cfg.train_dataloader.batch_size == images
    assert cfg.optim_wrapper.get('accumulative_counts', 1) == counts
    batch = gpus * images * counts
    assert cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.02 * batch / 16)
    assert cfg.train_cfg.max_epochs == 12 * times
    assert cfg.param_scheduler[-1].end == 12 * times
    assert (cfg.model.backbone.init_cfg is None) is ('_r50_' in path.stem)


@pytest.mark.parametrize('root, path', [
    ((None, '/somewhere/coco', '/somewhere/coco/')[i % 3], path)
    for i, path in enumerate(COCO)], ids=lambda p: getattr(p, 'stem', p))
def test_one_variable_names_the_coco_folder(root, path, monkeypatch):
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
