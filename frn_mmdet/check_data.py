"""Look at a config's data before hours of training rely on it."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ConfigError

COCO_KEYS = ('images', 'annotations', 'categories')


def check_coco_data(cfg: dict, splits: tuple[str, ...]) -> None:
    """Refuse missing folders and annotation files that are not COCO's.

    Only local ``CocoDataset`` data is looked at, and no file is parsed:
    COCO's annotations take 10 seconds and gigabytes.

    Args:
        cfg (dict): A whole config.
        splits (tuple[str]): Which of train, val, test will be read.

    Raises:
        ConfigError: Naming the key, the path and what to do.
    """
    for split in splits:
        dataloader = cfg.get(f'{split}_dataloader') or {}
        key = f'{split}_dataloader.dataset'
        for where, dataset in _coco_datasets(dataloader.get('dataset'), key):
            _check_dataset(where, dataset)


def _coco_datasets(value: Any, key: str) -> Iterator[tuple[str, dict]]:
    """CocoDatasets in a dataset config, those inside wrappers too."""
    if not isinstance(value, dict):
        return
    if value.get('type') in ('CocoDataset', 'mmdet.CocoDataset'):
        yield key, value
    yield from _coco_datasets(value.get('dataset'), f'{key}.dataset')
    for i, child in enumerate(value.get('datasets') or ()):
        yield from _coco_datasets(child, f'{key}.datasets[{i}]')


def _check_dataset(key: str, dataset: dict) -> None:
    root = str(dataset.get('data_root') or '')
    if '://' in root or dataset.get('backend_args'):
        return  # not on this disk
    hint = ('set data_root, or in configs of frn_mmdet COCO_ROOT or '
            'SHAPES_ROOT, to a folder with annotations/ and images in '
            "COCO's layout")
    if root and not Path(root).is_dir():
        raise ConfigError(f'{key}.data_root: no folder {root}; {hint}')
    images = Path(root, (dataset.get('data_prefix') or {}).get('img') or '')
    if not images.is_dir():
        raise ConfigError(f'{key}.data_prefix.img: no folder {images}; {hint}')
    ann_file = Path(root, dataset.get('ann_file') or '')
    if not ann_file.is_file():
        raise ConfigError(f'{key}.ann_file: no file {ann_file}; {hint}')
    problem = _problem_with(ann_file)
    if problem:
        raise ConfigError(
            f'{key}.ann_file: {ann_file} is not a COCO annotation file: '
            f'{problem}; it should be a JSON object with '
            f'{", ".join(COCO_KEYS)}')


def _problem_with(ann_file: Path) -> str | None:
    """What tells the file from COCO's; None if nothing does."""
    if ann_file.stat().st_size == 0:
        return 'it is empty'
    with ann_file.open('rb') as file, \
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:64].lstrip()[:1] != b'{':
            return 'it does not start with {'
        if content[-64:].rstrip()[-1:] != b'}':
            return 'it does not end with }, as if cut short'
        for key in COCO_KEYS:
            if content.find(f'"{key}"'.encode()) < 0:
                return f'it has no "{key}"'
    return None
