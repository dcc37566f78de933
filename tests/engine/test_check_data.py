"""The look at the data, against what mmdet's own CocoDataset reads."""

import gzip
import json
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.registry import init_default_scope

from frn_mmdet.engine.check_data import (
    check_coco_data,
    check_coco_evaluators,
    empty_data_explained,
)
from frn_mmdet.errors import ConfigError

COCO = dict(
    images=[dict(id=1, file_name='1.png', height=9, width=9)],
    annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 5, 5],
                      area=25, iscrowd=0)],
    categories=[dict(id=1, name='person')])
TEXT = json.dumps(COCO, indent=1)


@pytest.fixture
def config(tmp_path):
    """A config whose train data is a folder in COCO's layout."""
    (tmp_path / 'images').mkdir()
    (tmp_path / 'train.json').write_text(TEXT)
    dataset = dict(
        type='CocoDataset',
        data_root=f'{tmp_path}/',
        ann_file='train.json',
        data_prefix=dict(img='images/'))
    return dict(train_dataloader=dict(dataset=dataset))


def refused(config, *words, splits=('train', 'val')):
    with pytest.raises(ConfigError) as error:
        check_coco_data(config, splits)
    for word in words:
        assert word in str(error.value)


def mmdet_reads(config):
    """Whether mmdet itself finds the image."""
    init_default_scope('mmdet')
    try:
        return len(DATASETS.build(config['train_dataloader']['dataset'])) == 1
    except Exception:  # whatever mmdet raises
        return False


def test_coco_layout_passes(config):
    assert mmdet_reads(config)
    check_coco_data(config, ('train', 'val'))


def text_of(folder, text):
    (folder / 'train.json').write_text(text)


def names_of(folder, prefix):
    text_of(folder, TEXT.replace('1.png', f'{prefix}1.png'))


@pytest.mark.parametrize('change', [
    lambda folder, data: text_of(folder, f'{" " * 99}{TEXT}{chr(10) * 99}'),
    lambda folder, data: text_of(folder, '\r\n\t {\n "info" : 0 ,'
                                 + TEXT[1:].replace('":', '" : ')),
    lambda folder, data: text_of(folder, json.dumps(
        dict(reversed(COCO.items())))),
    lambda folder, data: data.update(
        data_root='/no/such/', ann_file=f'{folder}/train.json',
        data_prefix=dict(img=f'{folder}/images')),
    lambda folder, data: data.update(data_root=folder),
    lambda folder, data: data.update(ann_file=folder / 'train.json'),
    lambda folder, data: data.update(data_prefix=dict(img='')),
    lambda folder, data: (names_of(folder, '/data/'),
                          data.update(data_prefix=dict(img='none/'))),
    lambda folder, data: (names_of(folder, '\\/data\\/'),
                          data.update(data_prefix=dict(img='none/'))),
    lambda folder, data: data.update(
        data_root='', ann_file=f'{folder}/train.json',
        data_prefix=dict(img='')),
    lambda folder, data: data.update(data_prefix=dict(img='s3://bucket/')),
    lambda folder, data: data.update(type=CocoDataset),
], ids=range(12))
def test_what_mmdet_reads_passes(config, tmp_path, change):
    change(tmp_path, config['train_dataloader']['dataset'])
    assert mmdet_reads(config)
    check_coco_data(config, ('train', ))


def test_a_remote_file_passes(config, tmp_path):
    """mmdet downloads it, with or without a data_root here."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f'http://127.0.0.1:{server.server_port}/train.json'
            config['train_dataloader']['dataset']['ann_file'] = url
            assert mmdet_reads(config)
        finally:
            server.shutdown()
    check_coco_data(config, ('train', ))


@pytest.mark.parametrize('wrap', [
    lambda d: dict(type='RepeatDataset', times=1, dataset=d),
    lambda d: dict(type='ClassBalancedDataset', oversample_thr=0.1,
                   dataset=d),
    lambda d: dict(type='MultiImageMixDataset', pipeline=[], dataset=d),
    lambda d: dict(type='ConcatDataset', datasets=[d]),
    lambda d: dict(type='RepeatDataset', times=1, dataset=dict(
        type='ConcatDataset', datasets=[d])),
])
def test_wrapped_datasets_are_looked_at(config, wrap):
    loader = config['train_dataloader']
    inner = loader['dataset']
    loader['dataset'] = wrap(inner)
    assert mmdet_reads(config)
    check_coco_data(config, ('train', ))
    inner['ann_file'] = 'none.json'
    refused(config, 'none.json')


@pytest.mark.parametrize('key, value, words', [
    ('data_root', '/no/such/', ['data_root', '/no/such/', 'COCO_ROOT']),
    ('data_root', '~', ['data_root', '~ stays as it is']),
    ('ann_file', 'none.json', ['ann_file', 'none.json', 'no file']),
    ('ann_file', '', ['ann_file', 'no file']),
    ('data_prefix', {}, ['data_prefix.img is not set']),
])
def test_what_is_missing_is_named(config, key, value, words):
    config['train_dataloader']['dataset'][key] = value
    assert not mmdet_reads(config)
    refused(config, 'train_dataloader.dataset', *words)


def test_a_missing_folder_of_images_is_named(config):
    """mmdet would find out as it reads the first."""
    config['train_dataloader']['dataset']['data_prefix'] = dict(img='none/')
    refused(config, 'train_dataloader.dataset.data_prefix.img', 'none')


@pytest.mark.parametrize('content, words', [
    ('', ['empty']),
    ('[]', ['does not start']),
    ('<xml>', ['does not start']),
    (TEXT[:-1], ['cut short']),
    (TEXT + ' and more', ['cut short']),
    (json.dumps({k: COCO[k] for k in ('images', 'annotations')}),
     ['no "categories"']),
    (json.dumps([COCO]), ['does not start']),
    ('\ufeff' + TEXT, ['byte order mark']),
    (gzip.compress(TEXT.encode()), ['does not start']),
])
def test_what_is_not_coco_is_named(config, tmp_path, content, words):
    (tmp_path / 'train.json').write_bytes(
        content if isinstance(content, bytes) else content.encode())
    assert not mmdet_reads(config)
    refused(config, 'ann_file', 'train.json', 'images, annotations', *words)


def test_images_to_test_need_no_annotations(config, tmp_path):
    """As COCO's image_info_test-dev2017.json, which has none."""
    text_of(tmp_path, json.dumps(COCO | dict(annotations=None)).replace(
        '"annotations": null, ', ''))
    refused(config, 'no "annotations"')
    assert mmdet_reads(config)
    config['test_dataloader'] = config['train_dataloader']
    check_coco_data(config, ('test', ))


def test_each_of_several_files_is_looked_at(config, tmp_path):
    """mmdet's class takes one; a class of yours in its place may take more."""
    dataset = config['train_dataloader']['dataset']
    dataset['ann_file'] = ['train.json', f'{tmp_path}/train.json']
    check_coco_data(config, ('train', ))
    dataset['ann_file'].append('none.json')
    refused(config, 'none.json')


@pytest.mark.parametrize('change', [
    dict(data_root='s3://bucket/coco/'),
    dict(data_root='', ann_file='petrel://bucket/a.json'),
    dict(data_root='', ann_file='cluster:s3://bucket/a.json'),
    dict(backend_args=dict(backend='petrel'), data_root='/no/such'),
    dict(data_prefix=dict(img='none/'),
         pipeline=[dict(type='LoadFromMyStore')]),
    dict(data_prefix=dict(img='none/'), pipeline=[dict(
        type='LoadImageFromFile', backend_args=dict(backend='petrel'))]),
    dict(type='XMLDataset', data_root='/no/such/'),
])
def test_other_data_is_not_looked_at(config, change):
    config['train_dataloader']['dataset'].update(change)
    check_coco_data(config, ('train', ))


def test_no_data_is_not_looked_at():
    for loader in None, [], object():
        check_coco_data(dict(train_dataloader=loader), ('train', 'val'))


def test_a_pipe_is_left_to_mmdet(config, tmp_path):
    """It can be read but once, and stands for a file: <(zcat train.json.gz)"""
    os.mkfifo(tmp_path / 'pipe')
    config['train_dataloader']['dataset']['ann_file'] = 'pipe'
    check_coco_data(config, ('train', ))


@pytest.mark.parametrize('wrap, key', [
    (lambda metric: metric, 'val_evaluator.ann_file'),
    (lambda metric: [dict(type='VOCMetric'), metric],
     'val_evaluator[1].ann_file'),
    (lambda metric: dict(type='Evaluator', metrics=[metric]),
     'val_evaluator.metrics[0].ann_file'),
])
def test_the_evaluators_file_is_looked_at(tmp_path, wrap, key):
    def refused(*words):
        with pytest.raises(ConfigError) as error:
            check_coco_evaluators(config, ('val', ))
        for word in words:
            assert word in str(error.value)

    metric = dict(type='CocoMetric', ann_file='none.json')
    config = dict(val_evaluator=wrap(metric))
    refused(key, 'no file none.json', 'val_dataloader.dataset')
    check_coco_evaluators(config, ('train', ))
    (tmp_path / 'good.json').write_text(TEXT)
    for ann_file in (None, 'http://host/a.json',
                     Path(tmp_path, 'good.json')):
        metric['ann_file'] = ann_file
        check_coco_evaluators(config, ('val', ))
    (tmp_path / 'good.json').write_text(TEXT[:-1])
    refused(key, 'cut short')


def categories(folder, *names):
    """Write an annotation file with a box of each of these categories."""
    text_of(folder, json.dumps(dict(
        COCO,
        categories=[dict(id=i, name=name) for i, name in enumerate(names)],
        annotations=[dict(COCO['annotations'][0], id=i, category_id=i)
                     for i in range(len(names))],
        info='long ' * 99999)))


@pytest.mark.parametrize('names, metainfo', [
    (['person'], None),
    (['person'], {}),
    (['person'], dict(palette=[(1, 2, 3)])),
    (['roo', 'cat'], dict(classes=('roo', ))),
    (['roo'], dict(classes=['emu', 'roo'])),
    (['roo'], dict(classes='kangaroo')),  # of which roo is a part, to mmdet
    (['roo'], dict(classes=())),  # all there are
    (['r\u00f6\u00f6 "1"'], dict(classes=('r\u00f6\u00f6 "1"', ))),
    ([f'{i}' for i in range(9999)], dict(classes=('9998', ))),
])
def test_classes_that_mmdet_finds_pass(config, tmp_path, names, metainfo):
    config['train_dataloader']['dataset'].update(
        metainfo=metainfo, filter_cfg=dict(filter_empty_gt=True))
    categories(tmp_path, *names)
    assert mmdet_reads(config)
    check_coco_data(config, ('train', ))


def test_classes_may_be_a_file(config, tmp_path):
    (tmp_path / 'names.txt').write_text('emu\nroo\n')
    config['train_dataloader']['dataset'].update(
        metainfo=dict(classes=f'{tmp_path}/names.txt'),
        filter_cfg=dict(filter_empty_gt=True))
    categories(tmp_path, 'roo')
    assert mmdet_reads(config)
    check_coco_data(config, ('train', ))
    categories(tmp_path, 'kiwi')
    assert not mmdet_reads(config)
    refused(config, 'none', 'emu, roo', 'kiwi')


@pytest.mark.parametrize('metainfo, words', [
    (dict(classes=('roo', 'emu')), ['roo, emu']),
    (dict(classes='kangaroo'), ["'kangaroo'"]),
    (None, ['person, bicycle, car, motorcycle, airplane, ... (80)']),
])
def test_classes_that_are_none_of_the_datas_are_named(
        config, tmp_path, metainfo, words):
    """Both the config's and the file's; mmdet ends in NumPy's words."""
    config['train_dataloader']['dataset'].update(
        metainfo=metainfo, filter_cfg=dict(filter_empty_gt=True))
    categories(tmp_path, 'cup cake', 'tea')
    assert not mmdet_reads(config)
    refused(config, 'train_dataloader.dataset.metainfo.classes', *words,
            f'{tmp_path}/train.json', 'cup cake, tea')


@pytest.mark.parametrize('categories', [
    [], [1], [{}], ['roo'], None, dict(name='roo')])
def test_categories_that_are_not_understood_are_left_to_mmdet(
        config, tmp_path, categories):
    config['train_dataloader']['dataset']['metainfo'] = dict(classes=('a', ))
    text_of(tmp_path, json.dumps(COCO | dict(categories=categories)))
    check_coco_data(config, ('train', ))


def test_the_evaluators_categories_are_those_of_the_data(config, tmp_path):
    """mmdet would find out after an epoch, by an index out of range."""
    dataset = config['train_dataloader']['dataset']
    config = dict(
        val_dataloader=dict(dataset=dataset),
        val_evaluator=dict(type='CocoMetric',
                           ann_file=f'{tmp_path}/train.json'))
    check_coco_evaluators(config, ('val', ))
    categories(tmp_path, 'roo')
    with pytest.raises(ConfigError) as error:
        check_coco_evaluators(config, ('val', ))
    for word in ('val_evaluator.ann_file', 'person', 'roo',
                 'val_dataloader.dataset'):
        assert word in str(error.value)


@pytest.mark.parametrize('change, words', [
    (dict(filter_cfg=dict(min_size=10**6)), ['1000000', 'train.json']),
    (dict(metainfo=dict(classes=('a', )),
          filter_cfg=dict(filter_empty_gt=True)), ['classes a']),
])
def test_data_of_which_nothing_is_left(config, change, words):
    init_default_scope('mmdet')
    dataset = config['train_dataloader']['dataset']
    dataset.update(change)
    with pytest.raises(ConfigError) as error, empty_data_explained():
        DATASETS.build(dataset)
    for word in ('train_dataloader.dataset: no image', *words):
        assert word in str(error.value)


def test_other_errors_are_not_of_the_data():
    with pytest.raises(ValueError, match='at least one array'), \
            empty_data_explained():
        np.concatenate([])
