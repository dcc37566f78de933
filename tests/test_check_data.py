import json

import pytest

from frn_mmdet.check_data import check_coco_data
from frn_mmdet.errors import ConfigError

COCO = dict(images=[], annotations=[], categories=[])


@pytest.fixture
def config(tmp_path):
    """A config whose train data is a folder in COCO's layout."""
    (tmp_path / 'images').mkdir()
    (tmp_path / 'train.json').write_text(json.dumps(COCO, indent=1))
    dataset = dict(
        type='CocoDataset',
        data_root=f'{tmp_path}/',
        ann_file='train.json',
        data_prefix=dict(img='images/'))
    return dict(train_dataloader=dict(dataset=dataset))


def refused(config, *words):
    with pytest.raises(ConfigError) as error:
        check_coco_data(config, ('train', 'val'))
    for word in words:
        assert word in str(error.value)


def test_coco_layout_passes(config):
    check_coco_data(config, ('train', 'val'))


@pytest.mark.parametrize('wrap', [
    lambda d: dict(type='RepeatDataset', times=2, dataset=d),
    lambda d: dict(type='ConcatDataset', datasets=[d, dict(type='X')]),
])
def test_wrapped_datasets_are_looked_at(config, wrap):
    loader = config['train_dataloader']
    loader['dataset'] = wrap(loader['dataset'])
    check_coco_data(config, ('train', ))
    outer = loader['dataset']
    inner = outer.get('dataset') or outer['datasets'][0]
    inner['ann_file'] = 'none.json'
    refused(config, 'none.json')


@pytest.mark.parametrize('key, value, words', [
    ('data_root', '/no/such/', ['data_root', '/no/such/', 'COCO_ROOT']),
    ('ann_file', 'none.json', ['ann_file', 'none.json', 'no file']),
    ('data_prefix', dict(img='none/'), ['data_prefix.img', 'none']),
])
def test_what_is_missing_is_named(config, key, value, words):
    config['train_dataloader']['dataset'][key] = value
    refused(config, 'train_dataloader.dataset', *words)


@pytest.mark.parametrize('content, words', [
    ('', ['empty']),
    ('[]', ['does not start']),
    ('<xml>', ['does not start']),
    (json.dumps(COCO)[:-1], ['cut short']),
    (json.dumps(dict(images=[], annotations=[])), ['no "categories"']),
    (json.dumps([COCO]), ['does not start']),
])
def test_what_is_not_coco_is_named(config, tmp_path, content, words):
    (tmp_path / 'train.json').write_text(content)
    refused(config, 'ann_file', 'train.json', 'images, annotations', *words)


def test_other_data_is_not_looked_at(config):
    dataset = config['train_dataloader']['dataset']
    dataset['data_root'] = 's3://bucket/coco/'
    check_coco_data(config, ('train', ))
    dataset.update(type='XMLDataset', data_root='/no/such/')
    check_coco_data(config, ('train', ))
    check_coco_data(dict(train_dataloader=None), ('train', 'val', 'test'))
