#!/usr/bin/env python
"""Time detectors where they are deployed, one norm against another.

python .dev_scripts/benchmark_runtimes.py [CONFIG] [--norms FRN GN BN] [...]

A RetinaNet is built with each norm, exported to ONNX and run on a random image
in onnxruntime and OpenVINO, on the CPU, beside PyTorch's own predict(): from
the preprocessed image to the boxes. Of a runtime all norms run in turn. 'BN
folded' is BN folded into the convolutions before it is
exported; the runtimes fold the BN of a plain export by themselves. Weights
are random: the time is the network's, next to no boxes compete. Memory is
what loading and running adds to a process of its own at its peak.
"""

import logging
import multiprocessing
import sys
import tempfile
import warnings
from pathlib import Path

import benchmark_detector
import measure
import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope

from frn_mmdet.errors import ConfigError
from frn_mmdet.export import runtimes
from frn_mmdet.export.onnx import export_onnx
from frn_mmdet.utils.command_line import parser_of
from frn_mmdet.utils.markdown import table

PYTORCH = 'pytorch'
FOLDED = 'BN folded'
MIB = 2**20
SAME = ('runtime', )  # of the rows that are compared


def main(argv=None):
    """Measure, print, and write what was asked for."""
    args = parse_args(argv)
    for runtime in args.runtimes:
        if runtime != PYTORCH:
            runtimes.check_installed(runtime)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    init_default_scope('mmdet')
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for norm in args.norms:
            print(f'exporting {norm}', file=sys.stderr)
            models[norm] = build(args.config, norm)
            export_onnx(models[norm], file_of(folder, args.norms, norm))
        for runtime in args.runtimes:
            print(f'measuring {runtime}', file=sys.stderr)
            rows += measure_runtime(runtime, models, folder, args)
    about = measure.machine(args.device) | versions(args.runtimes)
    print(report(rows))
    print(f'\n{args.batch} x {args.size[0]}x{args.size[1]}. ' +
          ', '.join(f'{k} {v}' for k, v in about.items()))
    if args.json:
        measure.write(args.json, machine=about, size=args.size,
                      batch=args.batch, rows=rows)


def parse_args(argv):
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.add_argument(
        'config', metavar='CONFIG', nargs='?', type=Path,
        default=benchmark_detector.CONFIGS[0],
        help='RetinaNet R-50, if left out')
    parser.add_argument(
        '--norms', nargs='+', default=['FRN', 'GN', 'BN', FOLDED],
        metavar='NORM', help=f"values of model.norm_cfg, and '{FOLDED}'")
    parser.add_argument(
        '--runtimes', nargs='+', choices=[PYTORCH, *runtimes.RUNTIMES],
        default=[PYTORCH, *runtimes.RUNTIMES])
    parser.add_argument('--batch', type=measure.count, default=1)
    parser.add_argument(
        '--size', nargs=2, type=measure.count, metavar=('HEIGHT', 'WIDTH'),
        default=[320, 320])
    measure.add_arguments(parser, 30., 'each runtime')
    args = parser.parse_args(argv)
    if args.device.type != 'cpu':
        parser.error('--device: cpu is what is measured here')
    return args


def build(config, norm):
    """Return the config's detector in test mode."""
    if norm == FOLDED:
        return fuse_conv_bn(build(config, 'BN'))
    model = benchmark_detector.build(config, norm, torch.device('cpu'))
    return model.eval()


def file_of(folder, norms, norm):
    """Return where a norm's ONNX file is; its name may be none of a file."""
    return Path(folder, f'{norms.index(norm)}.onnx')


def measure_runtime(runtime, models, folder, args):
    """Return a row for each norm."""
    images = torch.randn(args.batch, 3, *args.size)
    sizes = torch.tensor([args.size] * args.batch)
    files = {norm: file_of(folder, args.norms, norm) for norm in models}
    peaks = {norm: peak_of(runtime, args, norm, files[norm])
             for norm in models}
    times = measure.interleave(
        {norm: runner(runtime, args.threads, models[norm], files[norm],
                      images, sizes) for norm in models},
        args.device, args.seconds)
    return [dict(runtime=runtime, norm=norm, ms=times[norm], peak=peaks[norm])
            for norm in models]


def runner(runtime, threads, model, file, images, sizes):
    """Return a function that detects."""
    if runtime == PYTORCH:
        samples = [DetDataSample(metainfo=dict(img_shape=tuple(size)))
                   for size in sizes.tolist()]

        def detect():
            with torch.no_grad():
                model.predict(images, samples, rescale=False)

        return detect
    run = runtimes.open_in(runtime, file, threads)
    inputs = runtimes.as_arrays(images=images, sizes=sizes)
    return lambda: run(inputs)


def peak_of(runtime, args, norm, file):
    """Return the bytes that a process takes to load and run a detector."""
    context = multiprocessing.get_context('spawn')
    with context.Pool(1) as pool:
        return pool.apply(_peak_here, (
            runtime, args.threads, args.config, norm, file, args.batch,
            args.size))


def _peak_here(runtime, threads, config, norm, file, batch, size):
    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)
    init_default_scope('mmdet')
    images = torch.randn(batch, 3, *size)
    sizes = torch.tensor([size] * batch)
    if runtime != PYTORCH:
        __import__(runtime)  # the library itself is no detector's
    before = _status('VmRSS')
    model = build(config, norm) if runtime == PYTORCH else None
    detect = runner(runtime, threads, model, file, images, sizes)
    for _ in range(3):
        detect()
    return _status('VmHWM') - before


def _status(field):
    """Return what Linux says of this process's memory, in bytes.

    Not resource.getrusage: its peak is at first that of the parent process.
    """
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ConfigError(f'/proc/self/status has no {field}')


def versions(names):
    """Return the runtimes' versions."""
    return {name: __import__(name).__version__.partition('-')[0]
            for name in names if name != PYTORCH}


def report(rows):
    """Return the table."""
    return table([{
        'runtime': r['runtime'],
        'norm': r['norm'],
        'ms': f'{r["ms"]:.0f}',
        'of BN': measure.of_bn(r, rows, 'ms', SAME),
        'peak MiB': f'{r["peak"] / MIB:.0f}',
        'peak of BN': measure.of_bn(r, rows, 'peak', SAME),
    } for r in rows], ['runtime', 'norm', 'ms', 'of BN', 'peak MiB',
                       'peak of BN'])


if __name__ == '__main__':
    try:
        main()
    except ConfigError as error:
        sys.exit(f'benchmark_runtimes.py: error: {error}')
