"""Time whole detectors, one norm against another.

python .dev_scripts/benchmark_detector.py [CONFIG ...] [--norms FRN BN GN] ...

A training step is forward, backward and an SGD step on random images with
boxes and masks, the data already loaded; inference is predict() with the
config's own post-processing. The norms of a config and batch run in turn.
CONFIG needs a detector of frn_mmdet; the rest of it is as it stands.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

import measure
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope

from frn_mmdet.errors import ConfigError
from frn_mmdet.switch.norms import parse_norm_cfg, read_norm
from frn_mmdet.utils.markdown import table

ROOT = Path(__file__).parents[1]
CONFIGS = [
    ROOT / 'configs/frn/retinanet_r50_fpn_frn-all_8xb2-6x_coco.py',
    ROOT / 'configs/frn/mask-rcnn_r50_fpn_frn-all_8xb2-6x_coco.py',
]
OBJECTS = 8  # in an image
GIB = 2**30
SAME = ('config', 'batch')  # of the rows that are compared


def main(argv=None):
    """Measure, print, and write what was asked for."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    init_default_scope('mmdet')
    if args.synced:
        start_group_of_one(args.device)
    rows = []
    for config in args.configs:
        for batch in args.batch_sizes:
            print(f'{config.stem}, batch {batch}', file=sys.stderr)
            rows += measure_batch(config, batch, args)
    about = measure.machine(args.device)
    print(report(rows))
    print(f'\nImages of {args.size[0]}x{args.size[1]}. ' +
          ', '.join(f'{k} {v}' for k, v in about.items()))
    if args.json:
        measure.write(args.json, machine=about, size=args.size, rows=rows)


def parse_args(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        'configs', metavar='CONFIG', nargs='*', type=Path,
        help='RetinaNet and Mask R-CNN R-50, if left out')
    parser.add_argument(
        '--norms', nargs='+', default=['FRN', 'BN', 'GN'], metavar='NORM',
        help='values of model.norm_cfg: FRN, FRN+ReLU, '
        'GN:num_groups=8, ...')
    parser.add_argument(
        '--batch-sizes', nargs='+', type=measure.count, default=[1, 2, 4])
    parser.add_argument(
        '--size', nargs=2, type=measure.count, metavar=('HEIGHT', 'WIDTH'),
        default=None, help='of the images; 800 1344 on a GPU, else 320 320')
    parser.add_argument(
        '--mixed', action='store_true',
        help='every second image is WIDTH high and HEIGHT wide, so that each '
        'is padded to the larger of both')
    measure.add_arguments(parser, 20., 'each config and batch')
    args = parser.parse_args(argv)
    args.configs = args.configs or CONFIGS
    gpu = args.device.type == 'cuda'
    args.size = args.size or ([800, 1344] if gpu else [320, 320])
    args.synced = [norm for norm in args.norms
                   if parse_norm_cfg(read_norm(norm)).synced]
    if args.synced and not gpu:
        parser.error(f'--norms {args.synced[0]}: it trains on GPUs alone')
    for config in args.configs:
        if not config.is_file():
            parser.error(f'no file {config}')
    return args


def start_group_of_one(device):
    """SyncBN trains in a process group; one GPU is enough of a group."""
    import os
    torch.cuda.set_device(device)
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')
    torch.distributed.init_process_group('nccl', rank=0, world_size=1)


def measure_batch(config, batch, args):
    """Return a row for each norm."""
    models = {norm: build(config, norm, args.device) for norm in args.norms}
    # The same images and objects for every norm.
    torch.manual_seed(0)
    sizes = [args.size, args.size[::-1] if args.mixed else args.size]
    data = demo_mm_inputs(
        batch, [(3, *sizes[i % 2]) for i in range(batch)],
        num_items=[OBJECTS] * batch, with_mask=True)
    for sample in data['data_samples']:
        sample.gt_instances.labels.zero_()  # a class that every config has
    training = {norm: train_step(model, data)
                for norm, model in models.items()}
    peak = {norm: measure.peak_bytes(step, args.device)
            for norm, step in training.items()}
    train = measure.interleave(training, args.device, args.seconds)
    for model in models.values():
        model.eval()
    test = measure.interleave(
        {norm: test_step(model, data) for norm, model in models.items()},
        args.device, args.seconds)
    return [
        dict(config=config.stem.split('_')[0], batch=batch, norm=norm,
             train_ms=train[norm], test_ms=test[norm], peak=peak[norm])
        for norm in models
    ]


def build(config, norm, device):
    """Return the config's detector with another norm, in training mode."""
    try:
        cfg = Config.fromfile(config)
    except Exception as error:  # whatever a config may raise
        raise ConfigError(f'{config} cannot be read: {error}') from error
    if not cfg.get('model') or 'backbone' not in cfg.model:
        raise ConfigError(f'{config} has no model with a backbone')
    cfg.model.norm_cfg = read_norm(norm)
    cfg.model.backbone.init_cfg = None  # nothing is downloaded
    torch.manual_seed(0)
    return MODELS.build(cfg.model).to(device).train()


def train_step(model, data):
    """Return a function that takes a step of SGD."""
    # A rate at which a hundred steps on one batch change nothing much.
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-6))

    def step():
        model.train_step(data, wrapper)

    return step


def test_step(model, data):
    """Return a function that detects."""

    def step():
        with torch.no_grad():
            model.test_step(data)

    return step


def report(rows):
    """Return the table."""
    return table([{
        'detector': r['config'],
        'batch': r['batch'],
        'norm': r['norm'],
        'ms a step': f'{r["train_ms"]:.0f}',
        'of BN': measure.of_bn(r, rows, 'train_ms', SAME),
        'images/s': f'{1e3 * r["batch"] / r["train_ms"]:.3g}',
        'peak GiB': f'{r["peak"] / GIB:.2f}',
        'peak of BN': measure.of_bn(r, rows, 'peak', SAME),
        'ms to detect': f'{r["test_ms"]:.0f}',
        'detect of BN': measure.of_bn(r, rows, 'test_ms', SAME),
    } for r in rows], [
        'detector', 'batch', 'norm', 'ms a step', 'of BN', 'images/s',
        'peak GiB', 'peak of BN', 'ms to detect', 'detect of BN'
    ])


if __name__ == '__main__':
    try:
        main()
    except ConfigError as error:
        sys.exit(f'error: {error}')
