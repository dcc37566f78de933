#!/usr/bin/env python
"""Write a RetinaNet, from its preprocessed image to its boxes, as ONNX.

python tools/export.py CONFIG CHECKPOINT OUT.onnx [--fp16]
python tools/export.py CONFIG CHECKPOINT OUT.onnx --raw

Any norm, any number of images and any size of them, ONNX's own operators
alone. Inputs: images (N, 3, H, W), float32, normalised and padded as in
training, and sizes (N, 2), int64, height and width without the padding.
Outputs: dets (N, M, 5), boxes (x1, y1, x2, y2) in pixels of the input and
scores, the best first, and labels (N, M); a row whose label is -1 is none.
With --raw the outputs are the maps of the dense head, of any detector that
has one, such as the RPN of a Mask R-CNN behind the neck's maps.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from mmdet.apis import init_detector
from mmengine.config import Config, DictAction

from frn_mmdet.errors import ConfigError
from frn_mmdet.export.onnx import export_onnx
from frn_mmdet.loading import checkpoints_explained


def main(argv=None):
    """Export."""
    args = parse_args(argv)
    # It names what it does not find, such as torchvision, which nobody needs.
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    try:
        export(args)
    except ConfigError as error:
        sys.exit(f'export.py: error: {error}')
    print(f'ONNX: {args.out}')


def parse_args(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='the config file')
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='a checkpoint of its model')
    parser.add_argument('out', metavar='OUT.onnx', type=Path)
    parser.add_argument(
        '--raw', action='store_true', help='the maps of the dense head')
    parser.add_argument(
        '--fp16', action='store_true',
        help='convolve in float16; norms and boxes stay float32')
    parser.add_argument(
        '--cfg-options', metavar='KEY=VALUE', nargs='+', action=DictAction,
        default={}, help='changes to the config')
    try:
        return parser.parse_args(argv)
    except (ValueError, AssertionError) as error:  # mmengine's DictAction
        parser.error(f'--cfg-options: KEY=VALUE is wanted: {error}')


def export(args):
    """Load the detector and write it."""
    for what in 'config', 'checkpoint':
        path = getattr(args, what)
        if '://' not in path and not os.path.isfile(path):
            raise ConfigError(f'{what}: no file {path}')
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options)
    # None of the config's own weights: the checkpoint brings them all.
    with checkpoints_explained():
        model = init_detector(
            config, args.checkpoint, device='cpu',
            cfg_options={'model.backbone.init_cfg': None})
    export_onnx(model, args.out, raw=args.raw, fp16=args.fp16)


if __name__ == '__main__':
    main()
