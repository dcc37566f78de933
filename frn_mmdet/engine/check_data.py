"""Look at a config's data before hours of training rely on it.

What mmdet would read passes. What is not on this disk, or read by a class
that is not known here, is not looked at.
"""

import contextlib
import json
import mmap
import os.path as osp
import re
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset
from mmengine.fileio import list_from_file
from mmengine.utils import is_abs

from ..errors import ConfigError

# mmdet looks each of these up. COCO's own files for test lack annotations.
KEYS = ('images', 'categories')
TRAIN_KEYS = ('images', 'annotations', 'categories')
SPACE = b' \t\r\n'  # of JSON
HINT = ('set data_root, or in configs of frn_mmdet COCO_ROOT or SHAPES_ROOT, '
        "to a folder with annotations/ and images in COCO's layout")


def check_coco_data(cfg: dict, splits: tuple[str, ...]) -> None:
    """Refuse missing folders, files that are not COCO's, and other classes.

    Only local ``CocoDataset`` data is looked at, and of a file no more is
    parsed than its categories: COCO's annotations take 10 seconds and
    gigabytes.

    Args:
        cfg (dict): A whole config.
        splits (tuple[str]): Which of train, val, test will be read.

    Raises:
        ConfigError: Naming the key, the path and what to do.
    """
    for split in splits:
        keys = TRAIN_KEYS if split == 'train' else KEYS
        for where, dataset in _datasets_of(cfg, split):
            _check_dataset(where, dataset, keys)


def check_coco_evaluators(cfg: dict, splits: tuple[str, ...]) -> None:
    """Refuse a ``CocoMetric`` whose annotation file is not of the data.

    It would be found out after an epoch. Args and errors are those of
    :func:`check_coco_data`.
    """
    for split in splits:
        key = f'{split}_evaluator'
        hint = f'give it that of {split}_dataloader.dataset'
        datasets = [each for _, each in _datasets_of(cfg, split)]
        for where, metric in _coco_metrics(cfg.get(key), key):
            file = metric.get('ann_file')
            if not file or metric.get('backend_args'):
                continue
            _check_ann_file(where, file, KEYS, hint)
            for dataset in datasets[:1]:  # of several, the first's count
                _check_classes(
                    f'{where}.ann_file: {file}', dataset, [file], hint)


@contextlib.contextmanager
def empty_data_explained() -> Iterator[None]:
    """Let data of which no image is left end in a sentence that names it.

    mmengine would end in NumPy's "need at least one array to concatenate".

    Raises:
        ConfigError: If a dataset is read and has nothing in it.
    """
    try:
        yield
    except ValueError as error:
        data = next((
            frame.f_locals['self'] for frame, _ in traceback.walk_tb(
                error.__traceback__)
            if frame.f_code is BaseDataset._serialize_data.__code__), None)
        if data is None or data.data_list:
            raise
        classes = _listed(data.metainfo.get('classes') or ())
        raise ConfigError(
            f'{"val or test" if data.test_mode else "train"}_dataloader.'
            f'dataset: no image of {data.ann_file} is left, with '
            f'metainfo.classes {classes} and filter_cfg {data.filter_cfg}'
        ) from error


def _datasets_of(cfg: dict, split: str) -> Iterator[tuple[str, dict]]:
    """The CocoDatasets of a split, each after its key in the config."""
    loader = cfg.get(f'{split}_dataloader')
    if isinstance(loader, dict):
        yield from _coco_datasets(
            loader.get('dataset'), f'{split}_dataloader.dataset')


def _coco_datasets(value: Any, key: str) -> Iterator[tuple[str, dict]]:
    """CocoDatasets in a dataset config, those inside wrappers too."""
    if not isinstance(value, dict):
        return
    if _is(value, 'CocoDataset'):
        yield key, value
    yield from _coco_datasets(value.get('dataset'), f'{key}.dataset')
    for i, child in enumerate(value.get('datasets') or ()):
        yield from _coco_datasets(child, f'{key}.datasets[{i}]')


def _coco_metrics(value: Any, key: str) -> Iterator[tuple[str, dict]]:
    """CocoMetrics in an evaluator config: itself, or one of several."""
    if isinstance(value, (list, tuple)):
        for i, child in enumerate(value):
            yield from _coco_metrics(child, f'{key}[{i}]')
    elif isinstance(value, dict):
        if _is(value, 'CocoMetric'):
            yield key, value
        yield from _coco_metrics(value.get('metrics'), f'{key}.metrics')


def _is(config: dict, name: str) -> bool:
    type_ = config.get('type')  # a class in mmengine's newer configs
    return getattr(type_, '__name__', type_) in (name, f'mmdet.{name}')


def _check_dataset(key: str, dataset: dict, keys: tuple[str, ...]) -> None:
    if dataset.get('backend_args'):
        return
    root = str(dataset.get('data_root') or '')
    prefix = (dataset.get('data_prefix') or {}).get('img')
    if prefix is None:
        raise ConfigError(f"{key}.data_prefix.img is not set; it is the "
                          "images' folder in data_root, '' for itself")
    images = _joined(root, prefix)
    files = dataset.get('ann_file') or ''
    files = [_joined(root, file) for file in (
        files if isinstance(files, (list, tuple)) else [files])]
    # Of several missing paths, the root of all is to be named.
    if _is_missing_folder(root) and any(
            path.startswith(root) for path in (images, *files)):
        raise ConfigError(f'{key}.data_root: no folder {_shown(root)}; {HINT}')
    for file in files:
        _check_ann_file(key, file, keys, HINT)
    if (_is_missing_folder(images) and _reads_images(dataset)
            and not any(map(_has_absolute_names, files))):
        raise ConfigError(
            f'{key}.data_prefix.img: no folder {_shown(images)}; {HINT}')
    _check_classes(f'{key}.metainfo.classes', dataset, files,
                   'give those of the file')


def _joined(root: str, path: str | Path) -> str:
    """A path in ``data_root``, as mmengine's datasets join them."""
    path = str(path)
    return osp.join(root, path) if root and not is_abs(path) else path


def _is_missing_folder(path: str) -> bool:
    """Whether there should be a folder on this disk; '' is where we are."""
    return '://' not in path and not osp.isdir(path or '.')


def _shown(path: str) -> str:
    return path + ' (~ stays as it is)' * path.startswith('~')


def _reads_images(dataset: dict) -> bool:
    """Whether images come from files; a pipeline may have its own loader."""
    pipeline = dataset.get('pipeline')
    if not pipeline:
        return True
    return any(
        'LoadImageFromFile' in str(step.get('type'))
        and not step.get('backend_args')
        for step in pipeline if isinstance(step, dict))


def _has_absolute_names(ann_file: str) -> bool:
    """Whether images are found wherever ``data_prefix`` points to."""
    if '://' in ann_file or not osp.isfile(ann_file):
        return True  # not known
    with _content_of(ann_file) as content:
        # PHP writes \/ for a slash.
        return re.search(
            rb'"file_name"\s*:\s*"(\\?/|https?:|s3:)', content) is not None


def _check_ann_file(key: str, path: str | Path, keys: tuple[str, ...],
                    hint: str) -> None:
    path = str(path)
    if '://' in path:
        return
    if not osp.exists(path) or osp.isdir(path):
        raise ConfigError(
            f'{key}.ann_file: no file {_shown(path)}; {hint}')
    try:
        problem = _problem_with(Path(path), keys)
    except OSError as error:
        raise ConfigError(
            f'{key}.ann_file: {path} cannot be read: {error.strerror}'
        ) from error
    if problem:
        raise ConfigError(
            f'{key}.ann_file: {path} is not a COCO annotation file: '
            f'{problem}; it should be a JSON object with {", ".join(keys)}')


def _problem_with(path: Path, keys: tuple[str, ...]) -> str | None:
    """What tells the file from COCO's; None if nothing does."""
    if not path.is_file():
        return None  # a pipe, which can be read but once
    if path.stat().st_size == 0:
        return 'it is empty'
    with _content_of(path) as content:
        if content[:3] == b'\xef\xbb\xbf':
            return 'it starts with a byte order mark, which JSON has not'
        if not re.match(rb'[ \t\r\n]*\{', content):
            return 'it does not start with {'
        if content[content.rfind(b'}') + 1:].strip(SPACE):
            return 'it does not end with }, as if cut short'
        for key in keys:
            if content.find(f'"{key}"'.encode()) < 0:
                return f'it has no "{key}"'
    return None


def _check_classes(what: str, dataset: dict, files: list[str],
                   hint: str) -> None:
    """Refuse files of which no category is one of a dataset's classes."""
    classes = _classes_of(dataset)
    known = [_categories_in(file) for file in files]
    if not classes or None in known:
        return
    there = [name for names in known for name in names]
    if there and not any(name in classes for name in there):
        raise ConfigError(
            f'{what}: of the classes {_listed(classes)} none is a category '
            f'of {" or ".join(files)}, which has {_listed(there)}; {hint}')


def _classes_of(dataset: dict) -> Collection[str]:
    """The names of a dataset's classes, as mmengine would read them."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        return DATASETS.get('CocoDataset').METAINFO['classes']
    if isinstance(classes, str) and osp.isfile(classes):
        return list_from_file(classes)
    return classes


def _listed(names: Collection[str]) -> str:
    if isinstance(names, str):
        return repr(names)
    more = f', ... ({len(names)})' if len(names) > 5 else ''
    return ', '.join(map(str, list(names)[:5])) + more or 'none'


def _categories_in(ann_file: str) -> list[str] | None:
    """The names of a file's categories; None if they cannot be told."""
    if '://' in ann_file or not osp.isfile(ann_file):
        return None
    with _content_of(ann_file) as content:
        lists = [_list_at(content, match.end()) for match in re.finditer(
            rb'"categories"[ \t\r\n]*:[ \t\r\n]*(?=\[)', content)]
    try:
        return [each['name'] for items in lists for each in items]
    except (KeyError, TypeError):
        return None


def _list_at(content: mmap.mmap, start: int) -> list | None:
    """The JSON list that starts there, without what follows it."""
    size = 2**16
    while True:
        text = content[start:start + size].decode('utf-8', 'ignore')
        try:
            return json.JSONDecoder().raw_decode(text)[0]
        except ValueError:  # cut short, or no JSON
            if start + size >= len(content):
                return None
        size *= 16


@contextlib.contextmanager
def _content_of(path: str | Path) -> Iterator[mmap.mmap]:
    with open(path, 'rb') as file, mmap.mmap(
            # not shared, which some network file systems cannot
            file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as content:
        yield content
