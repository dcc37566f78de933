#!/usr/bin/env python
"""Write a RetinaNet, from its preprocessed image to its boxes, as a file.

python -m frn_mmdet export CONFIG CHECKPOINT OUT.onnx [--fp16]
python -m frn_mmdet export CONFIG CHECKPOINT OUT.onnx --raw
python -m frn_mmdet export CONFIG CHECKPOINT OUT.onnx --check --images DIR

OUT.onnx is ONNX, of its own operators alone. Any norm, any number of images
and any size of them. Inputs: images (N, C, H, W), float32, normalised and
padded as in training, and sizes (N, 2), int64, height and width without the
padding. Outputs: dets (N, M, 5), boxes (x1, y1, x2, y2) in pixels of the input
and scores, the best first, and labels (N, M); a row whose label is -1 is none.

With --raw the outputs are the maps of the dense head, of any detector that
has one, such as the RPN of a Mask R-CNN behind the neck's maps. Each has
mmdet's name of its kind and the number of its level: cls_scores_0,
bbox_preds_0, centernesses_0 (FCOS); of a Mask R-CNN neck_0,
rpn_cls_scores_0, rpn_bbox_preds_0.

With --check nothing is written: what OUT.onnx finds is compared with what
PyTorch finds. Images are read as the config's test reads them, at each of
--sizes, and run in batches. A detection of one side must have one of the same
label on the other, its score within 1e-3 and its box within 0.1 pixel; exit
status 1 if not. A file of --fp16 is held to the same: where two boxes have
nearly the same score, float16 may put the other first, which the NMS keeps. A
box that overlaps a better one by the NMS's threshold, to the rounding, may be
there on one side alone.
"""

import logging
import sys
from pathlib import Path

from frn_mmdet.engine.load_detector import load_detector, read_config
from frn_mmdet.errors import ConfigError
from frn_mmdet.export.agreement import BOX, SCORE
from frn_mmdet.export.check import check_file
from frn_mmdet.export.onnx import export_onnx
from frn_mmdet.export.runtimes import RUNTIMES
from frn_mmdet.utils.command_line import add_detector, number, parser_of
from frn_mmdet.utils.markdown import table


def main(argv=None):
    """Export, or check what was exported."""
    args = parse_args(argv)
    # It names what it does not find, such as torchvision, which nobody needs.
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    try:
        if args.out.suffix != '.onnx':
            raise ConfigError(f'OUT: {args.out} does not end in .onnx')
        config = read_config(args.config, args.checkpoint, args.cfg_options)
        model = load_detector(config, args.checkpoint)
        if args.check:
            check(model, args)
        else:
            export_onnx(model, args.out, raw=args.raw, fp16=args.fp16)
            print(f'Detector: {args.out}')
    except ConfigError as error:
        sys.exit(f'export.py: error: {error}')


def parse_args(argv):
    """Read the command line."""
    parser = parser_of(__doc__)
    add_detector(parser)
    parser.add_argument(
        'out', metavar='OUT', type=Path, help='to write, .onnx')
    parser.add_argument(
        '--raw', action='store_true', help='the maps of the dense head')
    parser.add_argument(
        '--fp16', action='store_true',
        help='convolve in float16; norms and boxes stay float32')
    parser.add_argument(
        '--check', action='store_true',
        help='compare OUT, which is there, with PyTorch')
    group = parser.add_argument_group('with --check')
    group.add_argument('--images', metavar='DIR', type=Path)
    group.add_argument(
        '--count', type=number(int, 1), default=50, metavar='N',
        help='images at most (default: %(default)s)')
    group.add_argument(
        '--sizes', nargs='+', type=number(int, 1), metavar='PIXELS',
        default=[None],
        help="the longer side of an image; the config's own if left out")
    group.add_argument(
        '--batch-sizes', nargs='+', type=number(int, 1), default=[1, 3],
        metavar='N')
    group.add_argument(
        '--runtimes', nargs='+', default=list(RUNTIMES), metavar='NAME',
        help=' or '.join(RUNTIMES) + ' (default: each of them)')
    args = parser.parse_args(argv)
    if args.check is (args.images is None):
        parser.error('--check and --images belong together')
    if args.check and (args.raw or args.fp16):
        parser.error('--check reads OUT; --raw and --fp16 say how to write it')
    return args


def check(model, args):
    """Compare, print."""
    logging.disable(logging.WARNING)
    rows = check_file(model, args.out, args.images, args.count, args.sizes,
                      args.batch_sizes, args.runtimes)
    print(table([cells(*row) for row in rows],
                ['runtime', 'size', 'batch', 'images', 'detections',
                 'unmatched', 'score', 'box, pixels']))
    if not any(row.found.detections for row in rows):
        sys.exit('PyTorch found nothing, so nothing was compared: lower '
                 'model.test_cfg.score_thr or give other images.')
    if any(row.found.unmatched for row in rows):
        sys.exit(f'Not within {SCORE:g} of the scores and {BOX:g} pixel.')


def cells(runtime, size, batch, found):
    """Return a line of the table."""
    return {
        'runtime': runtime,
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
