"""Check every config: resolve it, print what it says, build its model.

python tools/check_configs.py [CONFIG ...] [--run]

With --run each config also trains two steps and evaluates once, on generated
images a quarter of which show nothing. Exit status 1 if any config fails.
"""

import argparse
import logging
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

sys.path.insert(0, str(Path(__file__).parent))
import make_shapes  # noqa: E402  (a script beside this one)

from frn_mmdet import norm_sites  # noqa: E402
from frn_mmdet.markdown import table  # noqa: E402

ROOT = Path(__file__).parents[1]
COLUMNS = ('config', 'gpus', 'images/gpu', 'steps', 'images', 'peak LR',
           'norms', 'thresholds')
# Images with objects, which is what mmdet trains on (filter_empty_gt).
TRAIN_IMAGES = {'coco': 117266, 'shapes': 800, 'kangaroo': 131, 'bccd': 291}
SIZE = 256  # of --run's images: the coarsest map keeps 2x2 elements
STEPS = 2
ROIS = 64  # that --run samples from an image for its losses


def main(argv=None):
    """Print the table; exit 1 if a config failed."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    init_default_scope('mmdet')
    columns = COLUMNS + (('run', ) if args.run else ())
    rows, failures = [], []
    with tempfile.TemporaryDirectory() as folder:
        if args.run:
            make_shapes.main([f'{folder}/shapes', '--train', '12', '--val',
                              '4', '--size', str(SIZE), '--empty', '0.25'])
        for path in args.configs:
            try:
                row = describe(path)
                if args.run:
                    row['run'] = run(path, Path(folder))
            except Exception as error:  # any: the table goes on without it
                row = dict.fromkeys(columns, 'failed')
                row['config'] = path.stem
                failures.append(
                    f'{path}: {type(error).__name__}: {error}')
            rows.append(row)
            print(f'{len(rows)}/{len(args.configs)} {path.stem}',
                  file=sys.stderr)
    print(table(rows, columns))
    for failure in failures:
        print(f'failed: {failure}')
    sys.exit(bool(failures))


def parse_args(argv):
    """Read the command line; no CONFIG means all of the repository."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('configs', metavar='CONFIG', nargs='*', type=Path)
    parser.add_argument(
        '--run', action='store_true',
        help='also train two steps and evaluate once')
    args = parser.parse_args(argv)
    args.configs = args.configs or all_configs()
    return args


def all_configs():
    """Return the configs of the repository that are not parts of others."""
    return sorted(
        path for path in (ROOT / 'configs').rglob('*.py')
        if '_base_' not in path.parts)


def describe(path):
    """Return a config's row of the table, its model built to count sites."""
    cfg = Config.fromfile(path)
    match = re.search(r'_(\d+)xb\d+', path.stem)
    gpus = int(match[1]) if match else 1
    batch = gpus * cfg.train_dataloader.batch_size
    if cfg.train_cfg.type == 'IterBasedTrainLoop':
        steps = cfg.train_cfg.max_iters
        images = steps * batch
    else:
        name = next((n for n in TRAIN_IMAGES if n in path.stem), 'shapes')
        images = cfg.train_cfg.max_epochs * TRAIN_IMAGES[name]
        steps = cfg.train_cfg.max_epochs * -(-TRAIN_IMAGES[name] // batch)
    peak = max([cfg.optim_wrapper.optimizer.lr] +
               [s.get('eta_max', 0) for s in cfg.param_scheduler])
    cfg.model.backbone.init_cfg = None
    with torch.device('meta'):  # no time for weights
        sites = norm_sites(MODELS.build(cfg.model))
    return {
        'config': path.stem,
        'gpus': gpus,
        'images/gpu': cfg.train_dataloader.batch_size,
        'steps': steps,
        'images': f'{images / 1e6:.3g} M',
        'peak LR': f'{peak:g}',
        'norms': sum(site.norm is not None for site in sites),
        'thresholds': sum(site.activation == 'TLU' for site in sites),
    }


def run(path, folder):
    """Train two steps and evaluate once; return what came out."""
    cfg = Config.fromfile(path)
    note = shrink(cfg, folder)
    cfg.work_dir = str(folder / path.stem)
    start = time.time()
    runner = Runner.from_cfg(cfg)
    runner.train()
    loss = runner.message_hub.get_scalar('train/loss').current()
    assert torch.isfinite(torch.tensor(loss)), f'the loss is {loss}'
    metrics = runner.message_hub.log_scalars
    assert any('bbox_mAP' in key for key in metrics), 'no AP'
    return f'loss {loss:.2f}, {time.time() - start:.0f} s{note}'


def shrink(cfg, folder):
    """Make a config's run small, in place; return a note on what changed.

    The model keeps its depth and norms. Images become the generated ones,
    of ``SIZE`` pixels, at most two a step.
    """
    batch = min(cfg.train_dataloader.batch_size, 2)
    cfg.train_dataloader.batch_size = batch
    cfg.train_dataloader.dataset.indices = STEPS * batch
    # Images that show nothing are for the training, too.
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=False)
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f'{folder}/shapes/'
        loader.dataset.metainfo = dict(classes=make_shapes.CLASSES)
        for step in loader.dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (SIZE, SIZE)
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'].ann_file = (
            f'{folder}/shapes/annotations/instances_val2017.json')
    if cfg.train_cfg.type == 'IterBasedTrainLoop':
        cfg.train_cfg.update(max_iters=STEPS, val_interval=STEPS)
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.default_hooks.checkpoint = None
    cfg.log_level = 'ERROR'
    set_everywhere(cfg.model, 'num_classes', len(make_shapes.CLASSES))
    # Of anchors and RoIs an image: Mask R-CNN's 512 take half a minute.
    set_everywhere(cfg.model, 'num', ROIS)
    # After two steps no box scores high, and without any there is no AP.
    set_everywhere(cfg.model, 'score_thr', 0.)
    cfg.model.backbone.init_cfg = None  # nothing is downloaded
    if cfg.model.norm_cfg.type == 'SyncBN':
        cfg.model.norm_cfg.type = 'BN'
        return ' (as BN: SyncBN needs several GPUs)'
    return ''


def set_everywhere(value, key, new):
    """Set a key wherever a model's config has it."""
    if isinstance(value, dict):
        if key in value:
            value[key] = new
        for child in value.values():
            set_everywhere(child, key, new)
    elif isinstance(value, list):
        for child in value:
            set_everywhere(child, key, new)


if __name__ == '__main__':
    main()
