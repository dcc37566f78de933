#!/usr/bin/env python
"""Plot the training loss and the AP of a training over its iterations.

Reads what mmengine logged, ``WORK_DIR/<time>/vis_data/scalars.json``: the
newest training in the folder, with the ones that it resumed.
"""

import argparse
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use('Agg')  # no display is needed

import matplotlib.pyplot as plt

from frn_mmdet.errors import ConfigError
from frn_mmdet.utils.picture import picture_path, write_picture
from frn_mmdet.utils.scalars import find_logs, read_scalars

AP_KEYS = {  # mmengine's key: the label of its curve
    'bbox_mAP': ('AP, boxes', '#0060a0', '-'),
    'bbox_mAP_50': ('AP50, boxes', '#0060a0', '--'),
    'segm_mAP': ('AP, masks', '#b04a00', '-'),
    'segm_mAP_50': ('AP50, masks', '#b04a00', '--'),
}


def main(argv=None):
    """Draw the picture."""
    args = parse_args(argv)
    try:
        losses, aps = read_training(args.work_dir)
        plot(losses, aps, args.work_dir.resolve().name, args.out)
    except ConfigError as error:
        sys.exit(f'plot_training.py: error: {error}')
    last = ', '.join(f'{key} {values[-1][1]:.3f}'
                     for key, values in aps.items())
    print(f'Loss and AP: {args.out}' + f' (at the end {last})' * bool(last))


def parse_args(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        'work_dir', metavar='WORK_DIR', type=Path,
        help='the --work-dir of tools/train.py')
    parser.add_argument(
        '--out', metavar='FILE', required=True, type=picture_path,
        help='the picture to write, .png or .pdf')
    return parser.parse_args(argv)


def read_training(work_dir):
    """Return the loss and the APs of the newest training in a folder.

    Args:
        work_dir (Path): The folder that the training wrote to.

    Returns:
        tuple[list, dict]: The losses, as pairs (iteration, loss), and for
        each key of ``AP_KEYS`` that was logged a list of the like.
    """
    if not work_dir.is_dir():
        raise ConfigError(f'the folder {work_dir} does not exist')
    runs = [(log, read_run(log)) for log in find_logs(work_dir)]
    runs = [(log, run) for log, run in runs if run]  # some died at once
    if not runs:
        raise ConfigError(
            f'{work_dir} has no logged training (*/vis_data/scalars.json)')
    log, run = runs.pop()
    while is_resumed(log) and runs:
        log, earlier = runs.pop()
        # What the resumed run did again counts, not what was lost.
        start = run[0][0]
        run = [entry for entry in earlier if entry[0] < start] + run
    losses = [(step, r['loss']) for step, r in run
              if is_number(r.get('loss'))]
    aps = {}
    for step, record in run:
        for key, value in record.items():
            key = key.rpartition('/')[2]  # 'coco/bbox_mAP' and the like
            # -1 is COCO's "there is nothing to average"
            if key in AP_KEYS and is_number(value) and value >= 0:
                aps.setdefault(key, []).append((step, value))
    return losses, aps


def read_run(log):
    """Return the records of a log, each with its iteration."""
    run = []
    for record in read_scalars(log):
        if is_number(record.get('loss')) and is_number(record.get('step')):
            run.append((record['step'], record))
        elif run:
            # A validation counts its epochs when training does, so it is
            # placed by what comes before it in the log.
            run.append((run[-1][0], record))
    return run


def is_number(value):
    """Tell whether a logged value can be drawn, NaN included."""
    return isinstance(value, (int, float))


def is_resumed(log):
    """Tell whether the run of a log went on from a checkpoint."""
    config = log.with_name('config.py')
    return config.is_file() and re.search(
        r'^resume = True$', config.read_text(), re.MULTILINE) is not None


def plot(losses, aps, title, out):
    """Write the picture: the loss, and below it the APs if there are any."""
    figure, axes = plt.subplots(
        1 + bool(aps), 1, sharex=True, squeeze=False, layout='constrained',
        figsize=(7, 6 if aps else 3.5))
    axes = axes[:, 0]
    figure.suptitle(title, parse_math=False)  # a $ is a $
    axes[0].plot(*zip(*losses, strict=True), color='#303030')
    axes[0].set(ylabel='training loss', ylim=(0, None))
    for key, (label, color, style) in AP_KEYS.items():
        if key in aps:
            axes[1].plot(
                *zip(*aps[key], strict=True), style, color=color, marker='o',
                label=label)
    if aps:
        axes[1].set(ylabel='AP on held-out images', ylim=(0, 1))
        axes[1].legend(loc='upper left')
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    axes[-1].set(xlabel='iteration', xlim=(0, None))
    write_picture(figure, out)
    plt.close(figure)


if __name__ == '__main__':
    main()
