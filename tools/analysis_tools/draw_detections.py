#!/usr/bin/env python
"""Draw a grid of held-out images with their true and predicted boxes.

Works with any config whose ``test_dataloader`` reads a COCO-format data set.
True boxes are dashed in black and white; predictions have a solid line and
the name of the class, so colour is never the only sign.
"""

import argparse
import math
import sys

import matplotlib

matplotlib.use('Agg')  # no display is needed

import matplotlib.pyplot as plt
import mmcv
import numpy as np
import torch
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from mmdet.apis import inference_detector
from mmdet.registry import DATASETS
from mmengine.registry import init_default_scope

from frn_mmdet.engine.check_data import check_coco_data
from frn_mmdet.engine.load_detector import load_detector, read_config
from frn_mmdet.errors import ConfigError
from frn_mmdet.utils.command_line import add_detector, number
from frn_mmdet.utils.picture import picture_path, write_picture

CELL = 3.2  # inches; an image's side in the grid
FONT = 8.5
# Where a label is looked for, as a share of the box: above it, below it,
# inside its upper and lower edge. The label stands on or hangs from the point.
LABEL_PLACES = [(0, 0, 'bottom'), (0, 1, 'top'), (0, 0, 'top'),
                (0, 1, 'bottom')]
# dark enough for white letters; colour-blind people can tell them apart
COLORS = ['#0060a0', '#b04a00', '#00785a', '#a04080', '#7a6000', '#303030']


def main(argv=None):
    """Draw the picture."""
    args = parse_args(argv)
    try:
        draw(args)
    except ConfigError as error:
        sys.exit(f'draw_detections.py: error: {error}')
    print(f'Detections: {args.out}')


def parse_args(argv):
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_detector(parser)
    parser.add_argument(
        '--out', metavar='FILE', required=True, type=picture_path,
        help='the picture to write, .png or .pdf')
    parser.add_argument(
        '--num', metavar='N', type=number(int, 1), default=12,
        help='how many images, spread over the data set (default: '
        '%(default)s)')
    parser.add_argument(
        '--score-thr', metavar='S', type=number(float, 0, 1), default=0.3,
        help='lowest score of the predictions shown (default: %(default)s)')
    parser.add_argument(
        '--device', default='cpu', help='cpu or cuda:0 (default: cpu)')
    return parser.parse_args(argv)


def draw(args):
    """Run the detector on the images and write the picture."""
    config = read_config(args.config, args.checkpoint, args.cfg_options)
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f'--device: {args.device} is not to be had: '
                          + str(error).partition('\n')[0]) from error
    if not config.get('test_dataloader'):
        raise ConfigError(f'test_dataloader: {args.config} has none')
    check_coco_data(config, ('test', ))
    init_default_scope(config.get('default_scope', 'mmdet'))
    dataset = DATASETS.build(config.test_dataloader.dataset)
    if len(dataset) == 0:
        raise ConfigError('test_dataloader.dataset: it has no images')
    model = load_detector(config, args.checkpoint, args.device)

    count = min(args.num, len(dataset))
    picks = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    columns = min(count, math.ceil(math.sqrt(count * 4 / 3)))
    rows = math.ceil(count / columns)
    figure, axes = plt.subplots(
        rows, columns, squeeze=False, layout='constrained',
        figsize=(CELL * columns, CELL * rows + 0.5))
    for axis in axes.flat:
        axis.axis('off')
    classes = dataset.metainfo['classes']
    for axis, pick in zip(axes.flat[:count], picks, strict=True):
        truth = dataset.get_data_info(int(pick))
        found = inference_detector(model, truth['img_path']).pred_instances
        found = found[found.scores >= args.score_thr].cpu().numpy()
        draw_image(axis, truth, found, classes)
    draw_legend(figure, args.score_thr)
    write_picture(figure, args.out)
    plt.close(figure)


def draw_image(axis, truth, found, classes):
    """Draw one image with its true boxes below the predicted ones.

    Args:
        axis (matplotlib.axes.Axes): Where to draw.
        truth (dict): The image's record in the data set.
        found (InstanceData): The predictions, as arrays.
        classes (tuple[str]): The names of the classes.
    """
    image = mmcv.imread(truth['img_path'], channel_order='rgb')
    if 'masks' in found:
        image = paint_masks(image, found)
    axis.imshow(image)
    for instance in truth['instances']:
        draw_true_box(axis, instance['bbox'])
    labels = []
    for box, label, score in zip(
            found.bboxes, found.labels, found.scores, strict=True):
        draw_box(axis, box, edgecolor=color_of(label), linewidth=2)
        labels.append((box, f'{classes[label]} {score:.2f}', color_of(label)))
    # last and best first: over every line, and the best has the best place
    height, width = image.shape[:2]
    draw_labels(axis, labels, width, height)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def color_of(label):
    """Return the colour of a class."""
    return COLORS[int(label) % len(COLORS)]


def paint_masks(image, found):
    """Return the image with the predicted masks shining through."""
    image = image.astype(np.float32)
    # the best last, on top
    for mask, label in zip(
            found.masks[::-1], found.labels[::-1], strict=True):
        color = np.array(matplotlib.colors.to_rgb(color_of(label))) * 255
        image[mask] = 0.5 * image[mask] + 0.5 * color
    return image.astype(np.uint8)


def draw_box(axis, box, **style):
    """Draw a box (x1, y1, x2, y2), pixel 0 reaching from -0.5 to 0.5."""
    x1, y1, x2, y2 = (float(v) - 0.5 for v in box)
    axis.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))


def draw_true_box(axis, box):
    """Draw a true box, dashed in black on white: seen on any image."""
    draw_box(axis, box, edgecolor='white', linewidth=1.6)
    draw_box(
        axis, box, edgecolor='black', linewidth=1.6, linestyle=(0, (3, 3)))


def draw_labels(axis, labels, width, height):
    """Write the labels where they do not cover one another, if there is room.

    Args:
        axis (matplotlib.axes.Axes): Where to draw.
        labels (list[tuple]): Box, text and colour of each, best score first.
        width (int): Of the image.
        height (int): Of the image.
    """
    # The size of a letter in pixels of the image; DejaVu's are 0.6 em wide.
    letter = FONT / 72 / CELL * max(width, height)
    taken = []
    for (x1, y1, x2, y2), text, color in labels:
        w, h = 0.62 * letter * len(text) + 0.6 * letter, 1.5 * letter
        spots = []
        for right, down, align in LABEL_PLACES:
            x = x1 + right * (x2 - x1)
            y = y1 + down * (y2 - y1) - (h if align == 'bottom' else 0)
            x = min(max(x, 0), max(width - w, 0))
            spots.append((x, min(max(y, 0), max(height - h, 0)), w, h))
        spot = min(spots, key=lambda s: sum(overlap(s, t) for t in taken))
        if sum(overlap(spot, t) for t in taken) > 0.2 * w * h:
            continue  # two labels in one place are two that cannot be read
        taken.append(spot)
        axis.text(
            spot[0] + w / 2 - 0.5, spot[1] + h / 2 - 0.5, text, color='white',
            fontsize=FONT, ha='center', va='center', clip_on=True,
            parse_math=False,  # a $ in a name is a $
            bbox=dict(boxstyle='square,pad=0.2', color=color))


def overlap(a, b):
    """Return the area that two boxes (x, y, width, height) share."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)


def draw_legend(figure, score_thr):
    """Say below the grid what the two kinds of lines are."""
    truth = (Line2D([], [], color='white', linewidth=2.5),
             Line2D([], [], color='black', linewidth=2.5,
                    linestyle=(0, (2, 2))))
    found = Line2D([], [], color=COLORS[0], linewidth=2.5)
    figure.legend(
        [truth, found],
        ['true box', f'predicted box, class and score (from {score_thr:g})'],
        handler_map={tuple: matplotlib.legend_handler.HandlerTuple(
            ndivide=1, pad=0)},
        loc='outside lower center', ncols=2, fontsize=12, handlelength=3,
        facecolor='#d0d0d0')


if __name__ == '__main__':
    main()
