"""A small comparison on a data set of 16 + 4 images."""

import pytest

from frn_mmdet.compare import Comparison


@pytest.fixture(scope='session')
def root():
    """Of the repository."""
    from pathlib import Path
    return Path(__file__).parents[2]


@pytest.fixture
def compare(shapes, root, monkeypatch):
    """compare(...): one of the small batch RetinaNet, or of another."""
    monkeypatch.setenv('SHAPES_ROOT', str(shapes))

    def _make(norms=('FRN', 'BN'), batch_sizes=(4, 2), seeds=2, config=None,
              **args):
        config = config or root / 'configs/small_batch/' \
            'retinanet_r18_fpn_shapes.py'
        return Comparison(str(config), list(norms), list(batch_sizes), seeds,
                    **args)

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
