"""Check every config: resolve it, print what it says, build its model.

python .dev_scripts/check_configs.py [CONFIG ...] [--run]

With --run each config also trains two steps and evaluates once, on generated
images a quarter of which show nothing. A classifier is mmpretrain's, which is
not of this environment: it is resolved, but neither built nor run (`make
test-imagenet` does that). Exit status 1 if any config fails.
"""

import argparse
import copy
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
from shrink_config import drop_checkpoints, make_shapes, shrink

from frn_mmdet import norm_sites
from frn_mmdet.compare.schedule import by_epoch, peak_lr
from frn_mmdet.errors import ConfigError
from frn_mmdet.utils.markdown import table

ROOT = Path(__file__).parents[1]
COLUMNS = ('config', 'gpus', 'images/gpu', 'steps', 'images', 'peak LR',
           'norms', 'thresholds')
# Images with objects, which is what mmdet trains on (filter_empty_gt).
TRAIN_IMAGES = {'coco': 117266, 'shapes': 800, 'kangaroo': 131,
                'bccd-cells': 891, 'bccd': 291, 'in1k': 1281167}


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
            make_shapes(folder)
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
    per_gpu = cfg.train_dataloader.get('batch_size', 1)
    batch = gpus * per_gpu
    if by_epoch(cfg):
        images = steps = None
        in_epoch = images_of(cfg, path.stem)
        if in_epoch:
            images = cfg.train_cfg.max_epochs * in_epoch
            steps = cfg.train_cfg.max_epochs * -(-in_epoch // batch)
    else:
        steps = cfg.train_cfg.max_iters
        images = steps * batch
    norms = thresholds = '-'
    if not is_classifier(cfg):
        drop_checkpoints(cfg.model)
        sites = norm_sites(build(cfg.model))
        norms = sum(site.norm is not None for site in sites)
        thresholds = sum(site.activation == 'TLU' for site in sites)
    return {
        'config': path.stem,
        'gpus': gpus,
        'images/gpu': per_gpu,
        'steps': steps or '-',
        'images': f'{images / 1e6:.3g} M' if images else '-',
        'peak LR': f'{peak_lr(cfg) * lr_scale(cfg, batch):g}',
        'norms': norms,
        'thresholds': thresholds,
    }


def is_classifier(cfg):
    """Tell whether a config is of mmpretrain."""
    return cfg.get('default_scope') == 'mmpretrain'


def lr_scale(cfg, batch):
    """Return what mmengine multiplies the LR with, for this batch."""
    scale = cfg.get('auto_scale_lr') or {}
    return batch / scale['base_batch_size'] if scale.get('enable') else 1


def images_of(cfg, name):
    """Return how many images an epoch has, None if it is not known.

    The config's name tells; one without classes of its own is COCO's.
    """
    for data, images in TRAIN_IMAGES.items():
        if data in name:
            return images
    dataset = cfg.train_dataloader.dataset
    coco = dataset.type == 'CocoDataset' and not dataset.get('metainfo')
    return TRAIN_IMAGES['coco'] if coco else None


def build(model):
    """Build a model, without weights if it can be: they take time."""
    try:
        with torch.device('meta'):
            return MODELS.build(copy.deepcopy(model))
    except ConfigError:
        raise
    except Exception:  # some compute while they are built
        return MODELS.build(copy.deepcopy(model))


def run(path, folder):
    """Train two steps and evaluate once; return what came out."""
    cfg = Config.fromfile(path)
    if is_classifier(cfg):
        return '-'
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


if __name__ == '__main__':
    main()
