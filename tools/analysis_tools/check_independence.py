"""Measure whether a norm makes the images of a batch depend on each other.

python -m frn_mmdet check_independence [--norms FRN GN BN]

On a ResNet-50 with FPN and random images, in float64, relative differences:
the features of an image beside other batch mates, those in training and in
test, and the backbone's gradient of several accumulated steps against that of
one step on all of their images. Then of an image in a batch that is padded to
larger ones, against the image alone: its features in training and in test,
and in float32 the scores of its boxes.
"""

import argparse
import copy
import logging
import sys
import warnings

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import stack_batch
from mmengine.registry import init_default_scope

from frn_mmdet import config_path
from frn_mmdet.errors import ConfigError
from frn_mmdet.models.own_area import over_own_areas
from frn_mmdet.switch.norms import read_norm
from frn_mmdet.utils.markdown import table

CONFIG = config_path('frn/retinanet_r50_fpn_frn-all_8xb2-6x_coco.py')
IMAGES = 8
SIZE = 128  # pixels
SEEN = 20  # batches, before anything is measured
COLUMNS = ('norm', 'other batch mates', 'training and test',
           'accumulated, 4 x 2 images', 'accumulated, 8 x 1 image',
           'padded, training', 'padded, test', 'padded, boxes')
SHAPES = ((128, 192), (192, 128), (128, 160))  # pixels, of a batch


def main(argv=None):
    """Print a row for each norm."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    init_default_scope('mmdet')
    try:
        rows = [measure(norm, args.depth) for norm in args.norms]
    except ConfigError as error:
        sys.exit(f'error: {error}')
    print(table(rows, COLUMNS))


def parse_args(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        '--norms', nargs='+', default=['FRN', 'GN', 'BN', 'BRN'],
        metavar='NORM', help='values of model.norm_cfg: FRN, FRN+ReLU, ...')
    parser.add_argument(
        '--depth', type=int, default=50, choices=(18, 50),
        help='of the ResNet')
    return parser.parse_args(argv)


def measure(norm, depth=50):
    """Return a norm's row: the largest differences, relative."""
    model = build(norm, depth)
    images, *others = (light(i) for i in range(1 + SEEN))
    mates = torch.cat([images[:1], others[0][1:]])
    with torch.no_grad():
        for batch in others:  # running averages come to rest
            backbone(model.train(), batch)
        features = backbone(model.train(), images)
        beside = backbone(model, mates)[:1]
        tested = backbone(model.eval(), images)
    whole = gradients(model, images, steps=1)
    return dict(zip(COLUMNS, [
        norm, *(f'{value:.0e}' for value in (
            difference(beside, features[:1]),
            difference(tested, features),
            difference(gradients(model, images, steps=4), whole),
            difference(gradients(model, images, steps=8), whole),
            padded(model.train(), features_of),
            padded(model.eval(), features_of),
            padded(model.float().eval(), scores_of)))
    ], strict=True))


def build(norm, depth):
    """Return a detector whose every block matters."""
    cfg = Config.fromfile(CONFIG)
    cfg.model.norm_cfg = read_norm(norm)
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.depth = depth
    # Otherwise the last gamma of each block is 0, and its norms hide.
    cfg.model.backbone.zero_init_residual = False
    # Without P6 and P7, which are 1x1 here: BN cannot train on one element.
    cfg.model.neck.num_outs = 3
    cfg.model.bbox_head.anchor_generator.strides = [8, 16, 32]
    if depth == 18:
        cfg.model.neck.in_channels = [64, 128, 256, 512]
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.double()


def light(seed):
    """Return a batch of random images, each of its own light, float64."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(
        IMAGES, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    contrast, brightness = torch.rand(
        2, IMAGES, 1, 1, 1, generator=generator, dtype=torch.float64)
    return (.5 + contrast) * images + 2 * brightness - 1


def backbone(model, images):
    """Return the pyramid's finest level, (N, C, H, W)."""
    return model.extract_feat(images)[0]


def gradients(model, images, steps):
    """Return the backbone's gradient of a loss that is a mean over images.

    The loss of an image is a fixed random projection of its features, since
    a detector's own is normalised by the objects of the batch.
    """
    model.train()
    model.zero_grad()
    generator = torch.Generator().manual_seed(0)
    for part in images.chunk(steps):
        features = backbone(model, part)
        weights = torch.randn(
            features.shape, generator=generator, dtype=features.dtype)
        ((features * weights).mean() / steps).backward()
    return torch.cat([p.grad.flatten() for p in model.backbone.parameters()
                      if p.grad is not None])


def padded(model, measured):
    """Return how far an image in a batch is from the image alone."""
    generator = torch.Generator().manual_seed(0)
    like = next(model.parameters())
    images = [torch.randn(3, *shape, generator=generator) for shape in SHAPES]
    samples = [DetDataSample(metainfo=dict(
        img_shape=shape, pad_shape=shape, scale_factor=(1, 1)))
        for shape in SHAPES]
    with torch.no_grad():
        together = measured(
            model, stack_batch(images).to(like), copy.deepcopy(samples))
        alone = [measured(model, image[None].to(like), [sample])[0]
                 for image, sample in zip(images, samples, strict=True)]
    return max(difference(one, own)
               for one, own in zip(together, alone, strict=True))


def features_of(model, images, samples):
    """Return each image's finest level, over its own area."""
    asked = model.has_own_area(model.training)
    with over_own_areas(images, samples, asked):
        features = backbone(model, images)
    return [maps[:, :sample.img_shape[0] // 8, :sample.img_shape[1] // 8]
            for maps, sample in zip(features, samples, strict=True)]


def scores_of(model, images, samples):
    """Return the scores of each image's best boxes."""
    model.test_cfg.update(score_thr=0., max_per_img=50)
    return [sample.pred_instances.scores[:50]
            for sample in model.predict(images, samples)]


def difference(value, reference):
    """Return the norm of a difference over that of the reference."""
    return ((value - reference).norm() / reference.norm()).item()


if __name__ == '__main__':
    main()
