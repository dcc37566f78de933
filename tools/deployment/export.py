#!/usr/bin/env python
"""Write a RetinaNet, from its preprocessed image to its boxes, as a file.

python -m frn_mmdet export CONFIG CHECKPOINT OUT.onnx [--fp16]
python -m frn_mmdet export CONFIG CHECKPOINT OUT.onnx --raw

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
"""

import argparse
import logging
import sys
from pathlib import Path

from frn_mmdet.engine.load_detector import load_detector, read_config
from frn_mmdet.errors import ConfigError
from frn_mmdet.export.onnx import export_onnx
from frn_mmdet.utils.command_line import CfgOptions


def main(argv=None):
    """Export."""
    args = parse_args(argv)
    # It names what it does not find, such as torchvision, which nobody needs.
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    try:
        export(args)
    except ConfigError as error:
        sys.exit(f'export.py: error: {error}')
    print(f'Detector: {args.out}')


def parse_args(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='the config file')
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='a checkpoint of its model')
    parser.add_argument(
        'out', metavar='OUT', type=Path, help='to write, .onnx')
    parser.add_argument(
        '--raw', action='store_true', help='the maps of the dense head')
    parser.add_argument(
        '--fp16', action='store_true',
        help='convolve in float16; norms and boxes stay float32')
    parser.add_argument(
        '--cfg-options', metavar='KEY=VALUE', nargs='+', action=CfgOptions,
        default={}, help='changes to the config')
    return parser.parse_args(argv)


def export(args):
    """Load the detector and write it."""
    if args.out.suffix != '.onnx':
        raise ConfigError(f'OUT: {args.out} does not end in .onnx')
    config = read_config(args.config, args.checkpoint, args.cfg_options)
    model = load_detector(config, args.checkpoint)
    export_onnx(model, args.out, raw=args.raw, fp16=args.fp16)


if __name__ == '__main__':
    main()
