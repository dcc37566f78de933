"""The part of check_configs.py that makes a config's run small.

The model keeps its depth and norms; what it reads, and for how long, changes.
"""

import subprocess
import sys

from mmengine.config import Config

from frn_mmdet import config_path
from frn_mmdet.compare.schedule import by_epoch
from frn_mmdet.switch.stock_settings import pretrained_in

SIZE = 256  # of the images: the coarsest map keeps 2x2 elements
LARGE = 320  # scales above become SIZE; SSD300 cannot be smaller
STEPS = 2
ROIS = 64  # sampled from an image for its losses
CLASSES = Config.fromfile(config_path(
    '_base_/datasets/shapes_detection.py')).metainfo.classes


def make_shapes(folder):
    """Make images, a quarter of which show nothing, in ``folder/shapes``."""
    subprocess.run([
        sys.executable, '-m', 'frn_mmdet', 'make_shapes', f'{folder}/shapes',
        '--train', '12', '--val', '4', '--size', str(SIZE), '--empty',
        '0.25'], check=True)


def shrink(cfg, folder):
    """Make a config's run small, in place; return a note on what changed.

    Args:
        cfg (Config): Any of mmdet's that detects boxes.
        folder (Path): Where ``shapes`` is, of :func:`make_shapes`.
    """
    shrink_data(cfg, folder)
    if by_epoch(cfg):
        cfg.train_cfg = dict(
            type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
    else:
        cfg.train_cfg = dict(
            type='IterBasedTrainLoop', max_iters=STEPS, val_interval=STEPS)
    cfg.default_hooks = dict(cfg.get('default_hooks') or {}, checkpoint=None)
    cfg.log_level = 'ERROR'
    cfg.load_from, cfg.resume = None, False
    return shrink_model(cfg.model)


def shrink_data(cfg, folder):
    """Read the generated images, at most two a step."""
    loader = cfg.train_dataloader
    loader.batch_size = min(loader.get('batch_size', 1), 2)
    for split in ('train', 'val'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.pop('prefetch_factor', None)
        loader.dataset = shapes_of(loader.dataset, split, folder)
        set_large(loader.dataset)
        set_everywhere(loader.dataset, 'times', 1)  # RepeatDataset's
    set_everywhere(cfg.train_dataloader.dataset, 'indices',
                   STEPS * cfg.train_dataloader.batch_size)
    evaluator = cfg.val_evaluator
    metric = evaluator.get('metric') if isinstance(evaluator, dict) else None
    cfg.val_evaluator = dict(
        type='CocoMetric', ann_file=f'{folder}/shapes/{annotations("val")}',
        metric=[each for each in ('bbox', 'segm') if each in (metric or '')]
        or 'bbox')
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None


def shapes_of(dataset, split, folder):
    """Return a dataset's config with generated data in its place.

    Wrappers stay, and the pipelines; whose data it was does not matter.
    """
    if 'dataset' in dataset:
        return dict(dataset, dataset=shapes_of(
            dataset['dataset'], split, folder))
    if 'datasets' in dataset:
        return dict(dataset, datasets=[
            shapes_of(each, split, folder) for each in dataset['datasets']])
    return dict(
        type='CocoDataset',
        data_root=f'{folder}/shapes/',
        ann_file=annotations(split),
        data_prefix=dict(img=f'{split}2017/'),
        metainfo=dict(classes=CLASSES),
        # Images that show nothing are for the training, too.
        filter_cfg=dict(filter_empty_gt=False),
        indices=None,
        test_mode=split != 'train',
        pipeline=dataset['pipeline'])


def annotations(split):
    """Return where a split's annotations are in the data's folder."""
    return f'annotations/instances_{split}2017.json'


def shrink_model(model):
    """Fit a model to the data; return a note on what its norms became."""
    set_everywhere(model, 'num_classes', len(CLASSES))
    # Of anchors and RoIs an image: Mask R-CNN's 512 take half a minute.
    set_everywhere(model, 'num', ROIS)
    # After two steps no box scores high, and without any there is no AP.
    set_everywhere(model, 'score_thr', 0.)
    drop_checkpoints(model)
    norm_cfg = model.get('norm_cfg')
    if isinstance(norm_cfg, str):
        norm_cfg = dict(type=norm_cfg)
    if norm_cfg and norm_cfg['type'] == 'SyncBN':
        model['norm_cfg'] = dict(norm_cfg, type='BN')
        return ' (as BN: SyncBN needs several GPUs)'
    return ''


def drop_checkpoints(value):
    """Let nothing be downloaded."""
    for child in dicts_in(value):
        if pretrained_in(child.get('init_cfg')):
            child['init_cfg'] = None


def set_large(value):
    """Make large images ``SIZE``, wherever a pipeline says how large."""
    for child in dicts_in(value):
        for key in ('scale', 'scales', 'img_scale', 'crop_size'):
            scale = child.get(key)
            if is_large(scale):
                child[key] = (SIZE, SIZE)
            elif isinstance(scale, (tuple, list)) and any(
                    map(is_large, scale)):  # one of several, or in between
                child[key] = [(SIZE, SIZE)] * len(scale)


def is_large(scale):
    """Tell whether something is a scale, (width, height), and large."""
    return isinstance(scale, (tuple, list)) and all(
        isinstance(side, int) for side in scale) and max(scale) > LARGE


def set_everywhere(value, key, new):
    """Set a key wherever a config has it."""
    for child in dicts_in(value):
        if key in child:
            child[key] = new


def dicts_in(value):
    """Yield every dict in a config, itself too."""
    if isinstance(value, dict):
        yield value
        value = value.values()
    if not isinstance(value, str) and hasattr(value, '__iter__'):
        for child in value:
            yield from dicts_in(child)
