"""A small comparison on a data set of 16 + 4 images."""

import copy

import pytest

from frn_mmdet.compare import Comparison

_made = {}


@pytest.fixture(scope='session')
def root():
    """Of the repository."""
    from pathlib import Path
    return Path(__file__).parents[2]


@pytest.fixture
def compare(shapes, root, monkeypatch):
    """compare(...): one of the small batch RetinaNet, or of another.

    That of the RetinaNet is made once, and copied.
    """
    monkeypatch.setenv('SHAPES_ROOT', str(shapes))

    def _make(norms=('FRN', 'BN'), batch_sizes=(4, 2), seeds=2, config=None,
              **args):
        path = config or root / 'configs/small_batch/' \
            'retinanet_r18_fpn_shapes.py'
        key = repr((norms, batch_sizes, seeds, args))
        if config or key not in _made:
            made = Comparison(str(path), list(norms), list(batch_sizes),
                              seeds, **args)
            if config:
                return made
            _made[key] = made
        return copy.deepcopy(_made[key])

    return _make


@pytest.fixture
def stock_options(shapes):
    """Overrides that put the generated images into a stock config."""
    options = {'model.roi_head.bbox_head.num_classes': 3}
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.dataset.data_root'] = f'{shapes}/'
        options[f'{split}_dataloader.dataset.metainfo'] = dict(
            classes=('circle', 'square', 'triangle'))
    return options
