"""The study of docs/studies/pretrained.md: FRN that starts from BN.

python tools/study_pretrained.py DATA OUT [--jobs N]

DATA has the folders kangaroo and bccd, each in COCO's layout, and
mobilenet_v2_imagenet.pth with torchvision's names. Trains by
tools/compare_norms.py and goes on where it was stopped. Writes
OUT/DATA-SET.md: every start of the backbone at 2 images a step and at 1.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from frn_mmdet.markdown import table

TOOLS = Path(__file__).parent
CONFIGS = TOOLS.parent / 'configs/pretrained'
BACKBONE = ':parts=backbone'
FRN = f'FRN+ReLU{BACKBONE}'
GN = f'GN{BACKBONE}:num_groups=8'
# What is compared, by folder: norms, overrides of the config, and the
# checkpoint that its backbone names.
STARTS = {
    'trained': (
        [f'BN{BACKBONE}', f'{FRN}:from_bn=100', f'{FRN}:from_bn=10',
         f'{FRN}:from_bn=1', f'{FRN}:from_bn=0', f'{FRN}:from_bn=False',
         f'{GN}:from_bn=False'], [], 'mobilenet_v2.pth'),
    'frozen': (
        [f'BN{BACKBONE}'], ['model.backbone.norm_eval=True'],
        'mobilenet_v2.pth'),
    'affine': ([GN], [], 'mobilenet_v2_gn.pth'),
}
TITLES = {
    ('frozen', f'BN{BACKBONE}'): 'BN, statistics frozen',
    ('trained', f'BN{BACKBONE}'): 'BN, statistics trained',
    ('affine', GN): "GN, BN's gamma and beta",
    ('trained', f'{GN}:from_bn=False'): 'GN from scratch',
    ('trained', f'{FRN}:from_bn=False'): 'FRN from scratch',
} | {('trained', f'{FRN}:from_bn={a}'): f'FRN from BN, a = {a}'
     for a in (100, 10, 1, 0)}


def main(argv=None):
    """Prepare the weights, train, report."""
    args = parse_args(argv)
    weights = prepare(args.data / 'mobilenet_v2_imagenet.pth', args.out)
    for name in args.data_sets:
        for start, (norms, options, checkpoint) in STARTS.items():
            compare(name, start, norms, options, weights / checkpoint, args)
        report = args.out / f'{name}.md'
        report.write_text(page(args.out / name, args.batch_sizes))
        print(f'{report}\n\n{report.read_text()}', flush=True)


def parse_args(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, metavar='DATA')
    parser.add_argument('out', type=Path, metavar='OUT')
    parser.add_argument('--data-sets', nargs='+', default=['kangaroo', 'bccd'],
                        choices=['kangaroo', 'bccd'])
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=[2, 1])
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--lr', nargs='+', default=['0.00025', '0.0005'],
                        help='at 2 images a step')
    parser.add_argument('--jobs', type=int, default=1)
    return parser.parse_args(argv)


def prepare(path, out):
    """Write torchvision's weights under mmdet's names; return their folder.

    Both list their layers in the order of the data, so the n-th convolution
    of one is the n-th of the other, and so with the norms.
    """
    out.mkdir(parents=True, exist_ok=True)
    init_default_scope('mmdet')
    names = MODELS.build(dict(type='MobileNetV2')).state_dict()
    weights = {key: value for key, value in torch.load(path).items()
               if not key.startswith('classifier.')}
    state = {}
    for (name, old), value in zip(names.items(), weights.values(),
                                  strict=True):
        assert old.shape == value.shape, name
        state[name] = value
    torch.save(state, out / 'mobilenet_v2.pth')
    torch.save({key.replace('.bn.', '.gn.'): value
                for key, value in state.items()
                if '.running_' not in key and 'num_batches' not in key},
               out / 'mobilenet_v2_gn.pth')
    return out.resolve()


def compare(name, start, norms, options, checkpoint, args):
    """Train a folder's norms by the comparison command."""
    command = [
        sys.executable, TOOLS / 'compare_norms.py',
        CONFIGS / f'retinanet_mobilenet-v2_fpn_{name}.py', '--norms', *norms,
        '--batch-sizes', *args.batch_sizes, '--seeds', args.seeds, '--lr',
        *args.lr, '--jobs', args.jobs, '--out', args.out / name / start]
    if options:
        command += ['--cfg-options', *options]
    root = f'{name.upper()}_ROOT'
    subprocess.run(
        [str(word) for word in command], check=True,
        env=os.environ | {root: str((args.data / name).resolve()),
                          'MOBILENET_V2': str(checkpoint)})


def page(folder, batch_sizes):
    """Return the table: a row a start, mean and deviation over seeds."""
    rows = []
    for (start, norm), title in TITLES.items():
        row = {'backbone': title}
        for batch in batch_sizes:
            row[f'{batch} a step'], row[f'LR at {batch}'] = score(
                read(folder / start / 'results.csv'), norm, str(batch))
        rows.append(row)
    return table(rows, list(rows[0])) + '\n'


def read(path):
    """Return the rows of a comparison's results."""
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def score(rows, norm, batch):
    """Return AP in points over the seeds at the rate that seed 0 chose."""
    of_rate = defaultdict(dict)
    for row in rows:
        if (row['norm'], row['batch']) == (norm, batch) and row['AP']:
            of_rate[row['lr']][row['seed']] = 100 * float(row['AP'])
    if not of_rate:
        return '-', '-'
    lr = max(of_rate, key=lambda lr: of_rate[lr].get('0', -1))
    values = list(of_rate[lr].values())
    spread = statistics.stdev(values) if len(values) > 1 else 0
    return f'{statistics.fmean(values):.1f} ± {spread:.1f}', f'{float(lr):g}'


if __name__ == '__main__':
    main()
