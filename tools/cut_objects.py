#!/usr/bin/env python
"""Cut the objects of a COCO-format data set out by their boxes.

python tools/cut_objects.py DATA OUT [--size 64] [--window 64]
    [--per-class 300]

DATA has COCO's layout, OUT gets ImageNet's: a folder a class below ``train``
and ``val``, with square PNG images: the box and a margin or, with --window,
so many pixels around its centre, which shows an object as large as a detector
sees it. What stands beyond the image's edge is its edge again. The same
arguments give the same files.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import cv2
import numpy as np

SPLITS = ('train', 'val')


def main(argv=None):
    """Cut, and say how many there are."""
    args = parse_args(argv)
    for split in SPLITS:
        file = args.data / f'annotations/instances_{split}2017.json'
        if not file.is_file():
            sys.exit(f'cut_objects.py: error: no file {file}')
        if (args.out / split).exists():
            sys.exit(f'cut_objects.py: error: {args.out / split} is there '
                     'already')
        records = json.loads(file.read_text())
        for name, objects in chosen(records, args.per_class).items():
            folder = args.out / split / name
            folder.mkdir(parents=True)
            for number, (image, box) in enumerate(objects):
                picture = cv2.imread(
                    str(args.data / f'{split}2017' / image))
                cv2.imwrite(str(folder / f'{number:05}.png'),
                            cut(picture, box, side_of(box, args),
                                args.size))
            print(f'{folder}: {len(objects)}')


def parse_args(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('data', metavar='DATA', type=Path)
    parser.add_argument('out', metavar='OUT', type=Path)
    parser.add_argument('--size', type=int, default=64,
                        help='of an image, in pixels (default: 64)')
    parser.add_argument('--margin', type=float, default=0.1,
                        help='on each side, as a share of the box')
    parser.add_argument('--window', type=int, default=None,
                        help='pixels of the image (default: box and margin)')
    parser.add_argument('--per-class', type=int, default=None,
                        help='at most, chosen at random (default: all)')
    return parser.parse_args(argv)


def chosen(records, per_class):
    """Return, for each class, pairs of an image's file and a box in it."""
    files = {image['id']: image['file_name'] for image in records['images']}
    found = {}
    for category in records['categories']:
        objects = [(files[record['image_id']], record['bbox'])
                   for record in records['annotations']
                   if record['category_id'] == category['id']
                   and not record.get('iscrowd')]
        random.Random(0).shuffle(objects)
        found[category['name']] = objects[:per_class]
    return found


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
