#!/usr/bin/env python
"""Make a small COCO-format data set of circles, squares and triangles.

The folder has COCO's own layout, so a COCO config runs on it unchanged but
for the classes: ``annotations/instances_{train,val}2017.json`` and the PNG
images of ``train2017`` and ``val2017``. Boxes, areas and polygons are exact:
a shape is drawn by COCO's own rasteriser, and no shape hides another.

Everything follows from the seed. Image ``i`` is the same whatever the number
of images, and its shapes are the same whatever the variation.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from frn_mmdet.errors import ConfigError
from frn_mmdet.utils.command_line import number
from frn_mmdet.utils.whole_file import is_free, whole_folder

CLASSES = ('circle', 'square', 'triangle')
CORNERS = {'circle': 32, 'square': 4, 'triangle': 3}
FIRST_CORNER = {'circle': 0, 'square': 45, 'triangle': -90}  # degrees
SPLITS = ('train', 'val')

# Goes up whenever the same arguments give other images, so that a data set of
# an older generator is not taken for the present one.
VERSION = '1'

COUNT = (2, 6)  # shapes in an image; fewer where there is no room
RADIUS = (0.1, 0.2)  # of the shapes, as a share of the image's side
TILT = 15  # degrees; more, and a square in its box looks like a circle
AMPLITUDE = 85.0  # of the colours around mid-grey, at contrast 1
CONTRAST = (0.35, 1.5)  # at variation 1; 1.5 x 85 just reaches black and white
NOISE = 25.0  # largest standard deviation of the noise at variation 1


def main(argv=None):
    """Make the data set, or say that it is there already."""
    args = parse_args(argv)
    out = args.out
    arguments = {k: v for k, v in vars(args).items() if k != 'out'}
    try:
        if is_made(out, arguments):
            print(f'{out} already holds this data set: nothing to do.')
            return
        counts = make_data_set(out, arguments)
    except ConfigError as error:
        sys.exit(f'make_shapes.py: error: {error}')
    except OSError as error:
        where = f'{error.filename}: ' if error.filename else ''  # full disk
        sys.exit(f'make_shapes.py: error: {out} cannot be written '
                 f'({where}{error.strerror})')
    for split in SPLITS:
        images, shapes = counts[split]
        print(f'{out}: {images} {split} images with {shapes} shapes.')


def parse_args(argv):
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n')[0],
        epilog='Set SHAPES_ROOT=OUT to run a demo config on OUT.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        'out', metavar='OUT', type=Path, help='the folder to make')
    parser.add_argument(
        '--train', metavar='N', type=number(int, 1), default=800,
        help='training images, 1 or more')
    parser.add_argument(
        '--val', metavar='N', type=number(int, 1), default=100,
        help='held-out images, 1 or more')
    parser.add_argument(
        '--size', metavar='PIXELS', type=number(int, 64, 4096), default=128,
        help='side of the square images, 64 to 4096')
    parser.add_argument(
        '--seed', metavar='N', type=number(int, 0), default=0,
        help='other seeds give other images, 0 or more')
    parser.add_argument(
        '--variation', metavar='V', type=number(float, 0, 1), default=0.2,
        help='how much brightness, contrast and noise vary from image to '
        'image: 0 not at all, 1 very much')
    parser.add_argument(
        '--empty', metavar='SHARE', type=number(float, 0, 1), default=0.0,
        help='share of the images that show no shape, 0 to 1')
    return parser.parse_args(argv)


def is_made(out, arguments):
    """Tell whether ``out`` is this data set.

    Raises:
        ConfigError: If something else stands there.
    """
    if is_free(out):
        return False
    try:
        info = json.loads(annotation_file(out, 'train').read_text())['info']
        there = info['arguments']
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f'{out} exists and was not made by this tool: give another '
            'folder, or delete it first') from None
    if info['version'] != VERSION:
        raise ConfigError(
            f'{out} was made by another version of this tool: give another '
            'folder, or delete it first')
    others = [f'--{k} {there.get(k)}' for k in arguments
              if there.get(k) != arguments[k]]
    if others:
        raise ConfigError(
            f'{out} holds another data set, made with {" ".join(others)}: '
            'give another folder, or delete it first')
    return True


def annotation_file(root, split):
    """Return the path of a split's annotations, named as COCO's."""
    return root / 'annotations' / f'instances_{split}2017.json'


def make_data_set(out, arguments):
    """Write the data set and return the images and shapes of each split."""
    with whole_folder(out) as root:
        (root / 'annotations').mkdir()
        return {split: make_split(root, split, arguments)
                for split in SPLITS}


def make_split(root, split, arguments):
    """Write one split and return how many images and shapes it has."""
    folder = root / f'{split}2017'
    folder.mkdir()
    images, annotations = [], []
    for index in range(arguments[split]):
        image, shapes = make_image(split, index, arguments)
        image_id = index + 1
        name = f'{image_id:012d}.png'
        # not cv2.imwrite, which fails without saying why
        (folder / name).write_bytes(cv2.imencode('.png', image)[1].tobytes())
        height, width = image.shape[:2]
        images.append(
            dict(id=image_id, file_name=name, height=height, width=width))
        for shape in shapes:
            annotations.append(
                dict(id=len(annotations) + 1, image_id=image_id, **shape))
    coco = dict(
        info=dict(
            description='Circles, squares and triangles (make_shapes.py)',
            version=VERSION,
            arguments=arguments),
        licenses=[],
        images=images,
        annotations=annotations,
        categories=[dict(id=i, name=name, supercategory='shape')
                    for i, name in enumerate(CLASSES, 1)])
    annotation_file(root, split).write_text(json.dumps(coco))
    return len(images), len(annotations)


def make_image(split, index, arguments):
    """Return image ``index`` of a split and its annotations.

    Returns:
        tuple[np.ndarray, list[dict]]: The image, (size, size, 3) uint8, and
        COCO's annotation fields of each shape but for the ids.
    """
    # Two streams: turning the dial changes the light, never the scene.
    key = (arguments['seed'], SPLITS.index(split), index)
    scene_rng = np.random.default_rng((*key, 0))
    light_rng = np.random.default_rng((*key, 1))
    empty = scene_rng.random() < arguments['empty']
    scene, shapes = make_scene(scene_rng, arguments['size'], empty)
    return light(scene, light_rng, arguments['variation']), shapes


def make_scene(rng, size, empty=False):
    """Draw shapes on a soft background.

    Returns:
        tuple[np.ndarray, list[dict]]: The scene, (size, size, 3) float32
        within [-1, 1], and the shapes.
    """
    ground = rng.uniform(-1, 1, 3)
    scene = make_background(rng, size, ground)
    taken = np.zeros((size, size), bool)
    shapes = []
    for _ in range(0 if empty else rng.integers(*COUNT, endpoint=True)):
        label = rng.integers(len(CLASSES))
        color = pick_color(rng, ground)
        placed = place(rng, CLASSES[label], taken)
        if placed is None:
            continue
        polygon, mask = placed
        taken |= mask
        scene[mask] = color
        shapes.append(
            dict(
                category_id=int(label) + 1,
                bbox=tight_box(mask),
                area=int(mask.sum()),
                segmentation=[polygon],
                iscrowd=0))
    return scene, shapes


def make_background(rng, size, ground):
    """Return soft clouds around the colour ``ground``."""
    clouds = rng.uniform(-0.15, 0.15, (5, 5, 3)).astype(np.float32)
    clouds = cv2.resize(clouds, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.clip(clouds + ground, -1, 1).astype(np.float32)


def pick_color(rng, ground):
    """Return a colour that stands out from the background."""
    while True:
        color = rng.uniform(-1, 1, 3)
        if np.linalg.norm(color - ground) > 0.8:
            return color


def place(rng, name, taken, tries=20):
    """Find room for a shape of random size, tilt and place.

    Returns:
        tuple[list[float], np.ndarray] | None: The polygon as COCO has it
        (x1, y1, x2, y2, ...) and its pixels, none of them ``taken``; None
        if no room was found.
    """
    size = len(taken)
    for _ in range(tries):
        radius = size * rng.uniform(*RADIUS)
        center = rng.uniform(radius, size - radius, 2)
        first = FIRST_CORNER[name] + rng.uniform(-TILT, TILT)
        angles = np.deg2rad(
            first + np.linspace(0, 360, CORNERS[name], endpoint=False))
        corners = center + radius * np.stack(
            [np.cos(angles), np.sin(angles)], axis=1)
        # What is drawn is what the file says: hundredths of a pixel.
        polygon = corners.round(2).ravel().tolist()
        mask = coco_mask.decode(
            coco_mask.frPyObjects([polygon], size, size))[..., 0].astype(bool)
        if not (mask & taken).any():
            return polygon, mask
    return None


def tight_box(mask):
    """Return the box (x, y, width, height) around the pixels of a mask."""
    ys, xs = np.nonzero(mask)
    return [int(xs.min()), int(ys.min()),
            int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]


def light(scene, rng, variation):
    """Turn a scene into an image, seen in a light and by a camera of its own.

    Args:
        scene (np.ndarray): Colours within [-1, 1].
        rng (np.random.Generator): Where the light comes from.
        variation (float): The dial, 0 to 1.

    Returns:
        np.ndarray: The image, uint8.
    """
    contrast = np.exp(variation * rng.uniform(*np.log(CONTRAST)))
    # as far as black and white allow: a bright image is not a washed-out one
    room = 127.5 - AMPLITUDE * contrast
    brightness = 127.5 + variation * room * rng.uniform(-1, 1)
    noise = variation * NOISE * rng.random()
    image = brightness + AMPLITUDE * contrast * scene
    image += noise * rng.standard_normal(scene.shape, np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


if __name__ == '__main__':
    main()
