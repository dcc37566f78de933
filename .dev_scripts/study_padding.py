"""The study of docs/studies/padding.md: images that are batched with others.

python .dev_scripts/study_padding.py DATA OUT [--norms NORM ...] [--jobs N]

DATA has the folder kangaroo, in COCO's layout, and mobilenet_v2_imagenet.pth
with torchvision's names. Trains by tools/compare_norms.py, with own_area
'test' and True, goes on where it was stopped, tests each training in batches
of other sizes, and writes OUT/training.md and OUT/test.md.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import study_detectors
import study_pretrained
from mmengine.config import Config
from mmengine.runner import Runner

from frn_mmdet.compare.cell import Cell
from frn_mmdet.switch.norms import read_norm
from frn_mmdet.utils.command_line import parser_of
from frn_mmdet.utils.markdown import table

CONFIG = study_pretrained.CONFIGS / 'retinanet_mobilenet-v2_fpn_kangaroo.py'
NORMS = (study_pretrained.FRN, study_pretrained.GN, study_pretrained.BN)
# Peak learning rates by images a step: AdamW's do not grow with the batch.
LR = {2: 0.0005, 4: 0.0005, 8: 0.001, 16: 0.001}
TESTS = [('test', 1), *((own, n) for n in (4, 16) for own in (False, 'test'))]


def main(argv=None):
    """Train, test, report."""
    args = parse_args(argv)
    args.only = []
    weights = study_pretrained.prepare(args) / study_pretrained.WEIGHTS
    os.environ.update(KANGAROO_ROOT=str((args.data / 'kangaroo').resolve()),
                      MOBILENET_V2=str(weights))
    results = defaultdict(list)
    for batch in args.batch_sizes:
        train(args, batch)
        for cell in cells(args, batch):
            for how, value in test(args.out / str(batch), cell).items():
                results[cell.norm, batch, how].append(100 * value)
    training = [
        {'norm': norm, 'own_area': own} | {
            f'{batch} a step': study_detectors.points(
                results[f'{norm}{suffix}', batch, 'test 1'])
            for batch in args.batch_sizes}
        for norm in args.norms for own, suffix in suffixes(norm).items()]
    tests = [
        {'norm': norm, 'images a step': batch} | {
            f'own_area={own}, {n}': study_detectors.points(
                results[norm, batch, f'{own} {n}']) for own, n in TESTS}
        for norm in args.norms for batch in args.batch_sizes]
    for name, rows in dict(training=training, test=tests).items():
        text = table(rows, list(rows[0])) + '\n'
        (args.out / f'{name}.md').write_text(text)
        print(f'{name}\n\n{text}')


def parse_args(argv):
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.add_argument('data', type=Path, metavar='DATA')
    parser.add_argument('out', type=Path, metavar='OUT')
    parser.add_argument('--norms', nargs='+', default=NORMS, metavar='NORM')
    parser.add_argument('--batch-sizes', nargs='+', type=int,
                        default=list(LR), choices=LR)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--jobs', type=int, default=1)
    return parser.parse_args(argv)


def suffixes(norm):
    """Return what a norm's text ends in for each own_area it can have."""
    return {'test': ''} if norm.startswith('BN') else {
        'test': '', 'True': ':own_area=true'}


def train(args, batch):
    """Train what is not there yet."""
    subprocess.run([
        sys.executable, '-m', 'frn_mmdet', 'compare_norms', str(CONFIG),
        '--norms', *(f'{norm}{suffix}' for norm in args.norms
                     for suffix in suffixes(norm).values()),
        '--batch-sizes', str(batch), '--same-lr', '--lr', str(LR[batch]),
        '--seeds', str(args.seeds), '--jobs', str(args.jobs), '--pretrained',
        '--out', str(args.out / str(batch))], check=True)


def cells(args, batch):
    """Yield the trainings at a batch size."""
    for norm in args.norms:
        for suffix in suffixes(norm).values():
            for seed in range(args.seeds):
                yield Cell(f'{norm}{suffix}', batch, LR[batch], seed)


def test(out, cell):
    """Return AP for each of TESTS, what is known from a file or tested."""
    folder = out / 'cells' / cell.name
    file = folder / 'tests.json'
    if not file.exists():
        checkpoint = (folder / 'last_checkpoint').read_text()
        file.write_text(json.dumps({
            f'{own} {n}': ap(folder, cell, checkpoint, own, n)
            for own, n in TESTS}))
    return json.loads(file.read_text())


def ap(folder, cell, checkpoint, own, images):
    """Return AP of a checkpoint, tested with so many images a batch."""
    cfg = Config.fromfile(CONFIG)
    cfg.model.norm_cfg = read_norm(cell.norm) | dict(own_area=own)
    cfg.test_dataloader.update(
        batch_size=images, num_workers=0, persistent_workers=False)
    cfg.work_dir = str(folder / 'tests')
    cfg.load_from = checkpoint
    cfg.default_scope = 'mmdet'
    cfg.experiment_name = f'{cell.name}_{own}_{images}'
    return Runner.from_cfg(cfg).test()['coco/bbox_mAP']


if __name__ == '__main__':
    main()
