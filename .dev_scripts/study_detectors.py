"""The part of study_pretrained.py on detectors: BN's goes on as FRN.

A RetinaNet of generated shapes is trained with BN in backbone and neck. It is
then tested with another norm, and trained on for four epochs.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from frn_mmdet import config_path
from frn_mmdet.compare.results_page import Score
from frn_mmdet.switch.norms import read_norm
from frn_mmdet.utils.markdown import table
from frn_mmdet.utils.scalars import find_logs, read_scalars

CONFIG = config_path('small_batch/retinanet_r18_fpn_shapes.py')
NORMS = {
    'BN goes on': 'BN',
    'FRN from BN, a = 100': 'FRN:from_bn=100',
    'FRN from BN, a = 10': 'FRN:from_bn=10',
    'FRN+ReLU from BN, a = 10': 'FRN+ReLU:from_bn=10',
    'FRN from BN, a = 0': 'FRN:from_bn=0',
}
EPOCHS = 4
AP = 'coco/bbox_mAP'


def run(out, seeds, jobs):
    """Train what is not there yet; return the table."""
    shapes = out / 'shapes'
    if not shapes.exists():
        call('make_shapes', shapes, '--train', 400, '--val', 100,
             '--variation', 0.5)
    os.environ['SHAPES_ROOT'] = str(shapes.resolve())
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    with ThreadPoolExecutor(jobs) as pool:
        bns = list(pool.map(lambda s: train_bn(out, s), range(seeds)))
        cells = [(title, seed) for seed in range(seeds) for title in NORMS]
        found = dict(zip(cells, pool.map(
            lambda cell: go_on(out, bns[cell[1]], *cell), cells),
            strict=True))
    rows = [dict(zip(('start', 'before', 'after 1 epoch',
                      f'after {EPOCHS}'), (title, *map(points, zip(
                          *(found[title, seed] for seed in range(seeds)),
                          strict=True))), strict=True))
            for title in NORMS]
    return table(rows, list(rows[0])) + '\n'


def train_bn(out, seed):
    """Return the checkpoint of a detector trained with BN."""
    folder = out / f'start_s{seed}'
    if not (folder / 'done').exists():
        call('train', CONFIG, '--work-dir', folder, '--cfg-options',
             *norm('BN'), f'randomness.seed={seed}',
             'train_dataloader.batch_size=4', 'optim_wrapper.optimizer.lr='
             '0.003')
        (folder / 'done').touch()
    return (folder / 'last_checkpoint').read_text()


def go_on(out, checkpoint, title, seed):
    """Return AP before, after one epoch, and at the end, in points."""
    folder = out / f'{NORMS[title].replace(":", "-")}_s{seed}'
    result = folder / 'result.json'
    if not result.exists():
        options = ['--cfg-options', *norm(NORMS[title])]
        call('test', CONFIG, checkpoint, '--work-dir', folder / 'before',
             *options)
        before, = (folder / 'before').glob('*/*.json')
        call('train', CONFIG, '--work-dir', folder, *options,
             f'load_from={checkpoint}', f'randomness.seed={seed}',
             'train_dataloader.batch_size=4',
             'optim_wrapper.optimizer.lr=0.001',
             f'train_cfg.max_epochs={EPOCHS}', 'train_cfg.val_interval=1',
             'param_scheduler.0.start_factor=1.0',
             f'param_scheduler.1.end={EPOCHS}',
             f'param_scheduler.1.T_max={EPOCHS - 1}')
        aps = [r[AP] for log in find_logs(folder) for r in read_scalars(log)
               if AP in r]
        result.write_text(json.dumps(
            [json.loads(before.read_text())[AP], aps[0], aps[-1]]))
    return [100 * ap for ap in json.loads(result.read_text())]


def norm(text):
    """Return the overrides that set a norm."""
    value = read_norm(text) | dict(parts=['backbone', 'neck'])
    return [f'model.norm_cfg.{key}={str(each).replace(" ", "")}'
            for key, each in value.items()]


def points(values):
    """Return mean and deviation of APs in points."""
    score = Score(list(values), failed=[])
    return f'{score.mean:.1f} ± {score.std:.1f}'


def call(tool, *args):
    """Run one of the tools; its output shows only if it fails."""
    subprocess.run([sys.executable, '-m', 'frn_mmdet', tool, *map(str, args)],
                   check=True, stdout=subprocess.DEVNULL)
