#!/usr/bin/env python
"""Compare what an exported RetinaNet finds with what PyTorch finds.

python -m frn_mmdet check_export CONFIG CHECKPOINT FILE.onnx --images DIR

Images are read as the config's test reads them, at each of --sizes, and run
in batches. A detection of one side must have one of the same label on the
other, its score within 1e-3 and its box within 0.1 pixel; exit status 1 if
not. A file of --fp16 is held to the same. A box that overlaps a better one by
the NMS's threshold, to the rounding, may be there on one side alone.
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.utils import get_test_pipeline_cfg
from mmengine.dataset import pseudo_collate

from frn_mmdet.engine.load_detector import load_detector, read_config
from frn_mmdet.errors import ConfigError
from frn_mmdet.export.agreement import BOX, SCORE, Agreement, lowest_kept
from frn_mmdet.export.runtimes import RUNTIMES, as_arrays, open_in
from frn_mmdet.utils.command_line import CfgOptions, number
from frn_mmdet.utils.images import image_files, read_image
from frn_mmdet.utils.markdown import table


def main(argv=None):
    """Compare, print."""
    args = parse_args(argv)
    logging.disable(logging.WARNING)
    try:
        rows = check(args)
    except ConfigError as error:
        sys.exit(f'check_export.py: error: {error}')
    print(table([row(*each) for each in rows],
                ['runtime', 'size', 'batch', 'images', 'detections',
                 'unmatched', 'score', 'box, pixels']))
    if not any(found.detections for *_, found in rows):
        sys.exit('PyTorch found nothing, so nothing was compared: lower '
                 'model.test_cfg.score_thr or give other images.')
    if any(found.unmatched for *_, found in rows):
        sys.exit(f'Not within {SCORE:g} of the scores and {BOX:g} pixel.')


def parse_args(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('checkpoint', metavar='CHECKPOINT')
    parser.add_argument('file', metavar='FILE.onnx', type=Path)
    parser.add_argument('--images', metavar='DIR', type=Path, required=True)
    parser.add_argument(
        '--count', type=number(int, 1), default=50, metavar='N',
        help='images at most (default: %(default)s)')
    parser.add_argument(
        '--sizes', nargs='+', type=number(int, 1), metavar='PIXELS',
        help="the longer side of an image; the config's own if left out")
    parser.add_argument(
        '--batch-sizes', nargs='+', type=number(int, 1), default=[1, 3],
        metavar='N')
    parser.add_argument(
        '--runtimes', nargs='+', default=list(RUNTIMES), metavar='NAME',
        help=' or '.join(RUNTIMES) + ' (both, if left out)')
    parser.add_argument(
        '--cfg-options', metavar='KEY=VALUE', nargs='+', action=CfgOptions,
        default={}, help='changes to the config, as the export had them')
    return parser.parse_args(argv)


def check(args):
    """Return (runtime, size, batch, agreement) for each of them."""
    if not args.file.is_file():
        raise ConfigError(f'file: no file {args.file}')
    config = read_config(args.config, args.checkpoint, args.cfg_options)
    model = load_detector(config, args.checkpoint)
    runs = {name: open_in(name, args.file) for name in args.runtimes}
    files = image_files(args.images)[:args.count]
    if not files:
        raise ConfigError(f'--images: no images in {args.images}')
    rows = []
    for size in args.sizes or [None]:
        pipeline = pipeline_of(config, size)
        for batch in args.batch_sizes:
            found = {name: Agreement() for name in runs}
            for i in range(0, len(files), batch):
                compare(model, runs, pipeline, files[i:i + batch], found)
            rows += [(name, size, batch, found[name]) for name in runs]
    return rows


def pipeline_of(config, size):
    """Return the config's test pipeline, at another size if given."""
    steps = get_test_pipeline_cfg(config)
    if size is not None:
        resizes = [step for step in steps if step['type'] == 'Resize']
        if not resizes:
            raise ConfigError('--sizes: the test pipeline has no Resize')
        resizes[0].update(scale=(size, size), keep_ratio=True)
    return Compose([step for step in steps
                    if step['type'] != 'LoadAnnotations'])


def compare(model, runs, pipeline, files, found):
    """Run one batch everywhere; add to what was found."""
    data = pseudo_collate([read_image(pipeline, file) for file in files])
    data = model.data_preprocessor(data, False)
    sizes = torch.tensor(
        [sample.img_shape[:2] for sample in data['data_samples']])
    with torch.no_grad():
        samples = model.predict(
            data['inputs'], data['data_samples'], rescale=False)
    wanted = [of_sample(sample.pred_instances) for sample in samples]
    cfg = model.bbox_head.test_cfg
    for name, run in runs.items():
        outputs = run(as_arrays(images=data['inputs'], sizes=sizes))
        if outputs[0].shape[1] > cfg.max_per_img:
            raise ConfigError(
                f'model.test_cfg.max_per_img is {cfg.max_per_img}, but the '
                f'file finds {outputs[0].shape[1]}; give the config that it '
                'was exported with')
        for ours, dets, labels in zip(wanted, *outputs, strict=True):
            there = labels >= 0
            lowest = lowest_kept(ours[0][:, 4], cfg.score_thr,
                                 cfg.max_per_img)
            found[name].add(ours, (dets[there], labels[there]), lowest)


def of_sample(instances):
    """Return boxes with scores, and labels, of what predict found."""
    dets = np.c_[instances.bboxes.numpy(), instances.scores.numpy()]
    return dets, instances.labels.numpy()


def row(name, size, batch, found):
    """Return a line of the table."""
    return {
        'runtime': name,
        'size': size or "the config's",
        'batch': batch,
        'images': found.images,
        'detections': found.detections,
        'unmatched': found.unmatched,
        'score': f'{found.score:.1e}',
        'box, pixels': f'{found.box:.1e}',
    }


if __name__ == '__main__':
    main()
