#!/usr/bin/env python
"""Cut the objects of a COCO-format data set out by their boxes.

python -m frn_mmdet cut_objects DATA OUT [--size 64] [--window 64]
    [--per-class 300]

DATA has COCO's layout, OUT gets ImageNet's: a folder a class below ``train``
and ``val``, with square PNG images: the box and a margin or, with --window,
so many pixels around its centre, which shows an object as large as a detector
sees it. What stands beyond the image's edge is its edge again. The same
arguments give the same files; OUT is whole or not there.
"""

import argparse
import json
import math
import random
import sys
from pathlib import Path

import cv2
import numpy as np

from frn_mmdet.errors import ConfigError
from frn_mmdet.utils.command_line import number
from frn_mmdet.utils.whole_file import is_free, whole_folder

SPLITS = ('train', 'val')


def main(argv=None):
    """Cut, and say how many there are."""
    args = parse_args(argv)
    try:
        counts = cut_data_set(args)
    except ConfigError as error:
        sys.exit(f'cut_objects.py: error: {error}')
    except OSError as error:
        sys.exit(f'cut_objects.py: error: {args.out} cannot be written: '
                 f'{error.strerror or error}')
    for folder, count in counts.items():
        print(f'{folder}: {count}')


def parse_args(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('data', metavar='DATA', type=Path)
    parser.add_argument('out', metavar='OUT', type=Path)
    parser.add_argument('--size', type=number(int, 1, 4096), default=64,
                        help='of an image, in pixels (default: 64)')
    parser.add_argument('--margin', type=number(float, 0, 10), default=0.1,
                        help='on each side, as a share of the box '
                        '(default: 0.1)')
    parser.add_argument('--window', type=number(int, 1, 4096), default=None,
                        help='pixels of the image (default: box and margin)')
    parser.add_argument('--per-class', type=number(int, 1), default=None,
                        help='at most, chosen at random (default: all)')
    return parser.parse_args(argv)


def cut_data_set(args):
    """Write OUT whole or not at all; return the objects of each folder.

    Raises:
        ConfigError: If OUT is there already, or DATA cannot be read.
    """
    if not is_free(args.out):
        raise ConfigError(f'OUT: {args.out} is there already; give another '
                          'folder, or delete it first')
    objects = {split: chosen(
        args.data / f'annotations/instances_{split}2017.json',
        args.per_class) for split in SPLITS}
    counts = {}
    with whole_folder(args.out) as root:
        for split, classes in objects.items():
            for name, found in classes.items():
                cut_class(args.data / f'{split}2017', found,
                          root / split / name, args)
                counts[args.out / split / name] = len(found)
    return counts


def chosen(file, per_class):
    """Return, for each class, pairs of an image's file and a box in it.

    Args:
        file (Path): COCO's annotations.
        per_class (int, optional): How many at most.

    Raises:
        ConfigError: If the file is missing or none of COCO's.
    """
    try:
        records = json.loads(file.read_text())
        files = {image['id']: image['file_name']
                 for image in records['images']}
        found = {category['id']: [] for category in records['categories']}
        for record in records['annotations']:
            if not record.get('iscrowd'):
                found[record['category_id']].append(
                    (files[record['image_id']], box_of(record)))
        names = {category['id']: folder_name(category['name'])
                 for category in records['categories']}
    except FileNotFoundError as error:
        raise ConfigError(f'DATA: no file {file}') from error
    except OSError as error:
        raise ConfigError(
            f'DATA: {file} cannot be read: {error.strerror}') from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f'DATA: {file} is not a COCO annotation file: '
                          f'{error!r}') from error
    for objects in found.values():
        random.Random(0).shuffle(objects)
    return {names[i]: objects[:per_class] for i, objects in found.items()}


def box_of(record):
    """Return an annotation's box: x, y, width, height in pixels."""
    x, y, width, height = box = record['bbox']
    if not all(map(math.isfinite, box)) or min(width, height) < 0:
        raise ValueError(f'bbox {box}')
    return box


def folder_name(name):
    """Return the name of a class, which is to be a folder's."""
    if name in ('', '.', '..') or set(name) & set('/\\\0'):
        raise ValueError(f'the category name {name!r} can be no folder')
    return name


def cut_class(images, objects, folder, args):
    """Write the objects of one class.

    Raises:
        ConfigError: If one of the images cannot be read.
    """
    folder.mkdir(parents=True)
    for i, (image, box) in enumerate(objects):
        picture = cv2.imread(str(images / image))
        if picture is None:
            raise ConfigError(f'DATA: {images / image} is no image')
        picture = cut(picture, box, side_of(box, args), args.size)
        # not cv2.imwrite, which fails without saying why
        (folder / f'{i:05}.png').write_bytes(
            cv2.imencode('.png', picture)[1].tobytes())


def side_of(box, args):
    """Return how many pixels of the image are cut."""
    return args.window or max(2, round(max(box[2:]) * (1 + 2 * args.margin)))


def cut(image, box, side, size):
    """Return the square around a box (x, y, width, height) of an image."""
    x, y, width, height = box
    left, top = (round(start + (length - side) / 2)
                 for start, length in ((x, width), (y, height)))
    rows = np.clip(np.arange(top, top + side), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, image.shape[1] - 1)
    return cv2.resize(image[rows][:, columns], (size, size),
                      interpolation=cv2.INTER_LINEAR)


if __name__ == '__main__':
    main()
