"""Convert a checkpoint that was trained with BN, once.

python -m frn_mmdet convert_checkpoint IN OUT [--norm FRN:from_bn=100]
python -m frn_mmdet convert_checkpoint IN OUT --statistics CONFIG [--norm BN]
python -m frn_mmdet convert_checkpoint IN OUT --check CONFIG --images DIR

Training does it by itself (norm_cfg.from_bn); this is for other packages and
for plain PyTorch, where frn_mmdet.FRN, or the layer of another norm, loads
what is written. A threshold of a TLU, which BN weights have none of, starts
at 0. With --statistics, the means and variances of the BNs are taken anew on
CONFIG's training images, those of its backbone and neck; with --norm BN that
is all. With --check, each norm of CONFIG's backbone and neck that IN has is
compared, before and after, on images of DIR.
"""

import copy
import io
import logging
import math
import re
import sys
from pathlib import Path

import torch
from mmcv.cnn.bricks.norm import infer_abbr
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader

from frn_mmdet.compare.switch_model import switch_model
from frn_mmdet.engine.loading import checkpoints_explained
from frn_mmdet.engine.statistics import take_statistics
from frn_mmdet.errors import ConfigError
from frn_mmdet.switch.from_bn import (
    BN_EPS,
    convert_by_name,
    is_of_no_map,
    mmcv_name,
    of_no_map_means,
    rename_norms,
)
from frn_mmdet.switch.norms import NORMS, parse_norm_cfg, part_of, read_norm
from frn_mmdet.utils.command_line import number, parser_of
from frn_mmdet.utils.images import image_files, read_image
from frn_mmdet.utils.markdown import table
from frn_mmdet.utils.whole_file import whole_file

SHOWN = ('backbone', 'neck')  # the parts whose maps are compared


def main(argv=None):
    """Convert, check if asked to."""
    args = parse_args(argv)
    logging.disable(logging.WARNING)
    try:
        convert(args)
    except ConfigError as error:
        sys.exit(f'error: {error}')


def parse_args(argv):
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.add_argument(
        'source', metavar='IN',
        help='a file, or what mmengine loads: torchvision://resnet50, ...')
    parser.add_argument('out', metavar='OUT', type=Path)
    parser.add_argument(
        '--norm', default='FRN',
        help='FRN, FRN:from_bn=100, GN:num_groups=8, BRN, ... or, with '
        '--statistics, BN (default: %(default)s)')
    parser.add_argument(
        '--bn-eps', type=float, default=BN_EPS, metavar='EPS',
        help='that the BNs were trained with (default: %(default)s)')
    parser.add_argument(
        '--keep-names', action='store_true',
        help='leave bn1 its name, where mmcv would call an FRN frn1')
    parser.add_argument(
        '--statistics', metavar='CONFIG',
        help="a detector's config, its train_dataloader the images")
    parser.add_argument(
        '--over', type=number(int, 1), default=256, metavar='N',
        help='images to take statistics over (default: %(default)s)')
    parser.add_argument(
        '--check', metavar='CONFIG',
        help="a detector's config, or mmdet's own as mmdet::folder/name.py")
    parser.add_argument('--images', type=Path, metavar='DIR')
    parser.add_argument(
        '--count', type=number(int, 1), default=16, metavar='N',
        help='images to check on (default: %(default)s)')
    args = parser.parse_args(argv)
    if (args.check is None) is not (args.images is None):
        parser.error('--check and --images belong together')
    return args


def convert(args):
    """Write OUT; print what it is."""
    value = read_norm(args.norm)
    plan = parse_norm_cfg(value)
    stays = plan.name == 'BN' and bool(args.statistics) and not args.check
    if not (plan.converts or stays):
        raise ConfigError(
            f'--norm: {args.norm} cannot start from BN; choose '
            + ', '.join(name for name, row in NORMS.items()
                        if row.goes_on_from_bn)
            + ', with no ws or from_bn=false and a place for gamma and beta, '
            'or BN with --statistics and no --check')
    if 'parts' in value:
        raise ConfigError(
            f'--norm: {args.norm} names parts, but every BN is converted')
    if not 0 < args.bn_eps < math.inf:
        raise ConfigError(
            f'--bn-eps must be a number above 0, got {args.bn_eps:g}')
    if args.out.is_dir() or not args.out.name:
        raise ConfigError(f'OUT: {args.out} is a folder; give a file')
    images = image_files(args.images, args.count) if args.check else []
    checkpoint = load(args.source)
    key = next((key for key in ('state_dict', 'model')
                if isinstance(checkpoint.get(key), dict)), None)
    before = check_weights(checkpoint[key] if key else checkpoint, args)
    if args.statistics:
        before = with_statistics(args, before)
    after = copy.copy(before)
    names = rename_norms(after, plan, args.keep_names or stays)
    of_no_map = [] if stays else convert_by_name(
        after, plan, args.bn_eps, names)
    report = compare(args, value, before, images) if images else ''
    # Not the optimizer's state, which counts the parameters of BN.
    buffer = io.BytesIO()  # torch hides what a disk says
    torch.save({'meta': checkpoint.get('meta', {}), key: after}
               if key else after, buffer)
    with whole_file(args.out, 'OUT') as file:
        file.write(buffer.getbuffer())
    old, new = next(iter(names.items()))
    print(f'{args.out}: {len(names)} BN became {plan.name}'
          + ('' if plan.share is None else f', a = {plan.from_bn:g}')
          + f' ({old} is {new})')
    if of_no_map:
        print(f'{len(of_no_map)} of them ({of_no_map[0]}, ...): '
              f'{of_no_map_means(plan)}')
    print(report, end='')


def load(source):
    """Return a checkpoint, a dict."""
    try:
        with checkpoints_explained():
            checkpoint = CheckpointLoader.load_checkpoint(source, 'cpu', None)
    except ConfigError as error:
        raise ConfigError(f'IN: {error}') from error
    if not isinstance(checkpoint, dict):
        raise ConfigError(
            f'IN: {source} holds a {type(checkpoint).__name__}, not weights')
    return checkpoint


def check_weights(state, args):
    """Return a state dict, in which each BN is whole."""
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ConfigError(
                f'IN: {args.source} holds no weights: at {name!r} there is a '
                f'{type(value).__name__}')
    means = [name for name in state if name.endswith('running_mean')]
    if not means:
        raise ConfigError(
            f'IN: {args.source} has no BN (no key that ends in running_mean)')
    for name in means:
        path = name.removesuffix('.running_mean')
        shape = getattr(state.get(f'{path}.running_var'), 'shape', None)
        if len(state[name].shape) != 1 or shape != state[name].shape:
            raise ConfigError(
                f'IN: {path} is no BN: running_mean and running_var have '
                'other shapes than (channels,)')
        name = path.rpartition('.')[2]
        other = next((norm for norm, row in NORMS.items() if re.fullmatch(
            rf'{infer_abbr(row.layer)}\d*', name)), 'BN')
        if other != 'BN':
            raise ConfigError(f'IN: the norm {path} is {other}, not BN')
    return state


def with_statistics(args, state):
    """Return a state dict with the statistics of a config's images."""
    init_default_scope('mmdet')
    cfg = read_config('--statistics', args.statistics)
    at = prefix_of(state)
    model = build(cfg, None)
    paths = [path for path in bn_paths(model) if part_of(path) in SHOWN
             and f'{path}.running_mean'.removeprefix(at) in state]
    if not paths:
        raise ConfigError(
            f'--statistics: {args.statistics} has no BN in its backbone or '
            f'neck where {args.source} has')
    folded = [path for path in paths
              if is_of_no_map(f'{path}.'.removeprefix(at), state)]
    if folded:
        raise ConfigError(
            f'--statistics: those of {folded[0]} in {args.source} are folded '
            'into gamma and beta, where others cannot take their place')
    there = {f'{at}{key}': value for key, value in state.items()}
    check_shapes('--statistics', args.statistics, model, there, paths, args)
    check_eps('--statistics', args.statistics, model, paths, args)
    model.load_state_dict(there, strict=False)
    seen = take_statistics(model, cfg, args.over)
    print(f'statistics of {seen} images of {args.statistics}, {len(paths)} BN')
    own, state = model.state_dict(), copy.copy(state)  # with its metadata
    for path in paths:
        for name in ('running_mean', 'running_var'):
            key = f'{path}.{name}'
            state[key.removeprefix(at)] = own[key]
    return state


def prefix_of(state):
    """Return what the keys of a backbone's weights lack in a detector."""
    return '' if any(key.startswith('backbone.') for key in state) else (
        'backbone.')


def compare(args, value, before, images):
    """Return the table of differences, mean over the images."""
    init_default_scope('mmdet')
    cfg = read_config('--check', args.check)
    at = prefix_of(before)
    before = {f'{at}{key}': state for key, state in before.items()
              if part_of(f'{at}{key}') in SHOWN}
    parts = {part_of(key) for key in before if key.endswith('.running_mean')}
    there = [path for path in bn_paths(build(cfg, None))
             if part_of(path) in parts]
    if not there:
        raise ConfigError(f'--check: {args.check} has no BN in its backbone '
                          f'or neck where {args.source} has')
    # With ReLU, or what stands there: a fused TLU would show in the output.
    value = value | dict(parts=sorted(parts), tlu=False)
    plan = parse_norm_cfg(value)
    models = [build(cfg, None), build(cfg, value)]
    check_shapes('--check', args.check, models[0], before, there, args)
    check_eps('--check', args.check, models[0], there, args)
    pairs = pair_norms(models[1], there, plan)
    after = copy.copy(before)
    convert_by_name(after, plan, args.bn_eps, pairs)
    for model, state in zip(models, (before, after), strict=True):
        model.load_state_dict(state, strict=False)
    differences = {}
    pipeline = Compose(get_test_pipeline_cfg(cfg))
    for file in images:
        data = pseudo_collate([read_image(pipeline, file)])
        data = models[0].data_preprocessor(data, False)['inputs']
        first = outputs(models[0], pairs, data)
        second = outputs(models[1], pairs.values(), data)
        for path, a, b in zip(first, first.values(), second.values(),
                              strict=True):
            differences.setdefault(path, []).append(
                ((a - b).norm() / a.norm()).item())
    rows = [{'layer': path, 'difference': f'{sum(each) / len(each):.2g}'}
            for path, each in differences.items()]
    return (f'\nRelative difference from BN, mean of {len(images)} images:\n\n'
            + table(rows, ['layer', 'difference']) + '\n')


def read_config(option, path):
    """Return a config, of mmdet's or of a file."""
    try:
        return get_config(path) if '::' in path else Config.fromfile(path)
    except Exception as error:  # whatever a config may raise
        raise ConfigError(
            f'{option}: {path} cannot be read: {error}') from error


def check_eps(option, config, model, paths, args):
    """Refuse another eps than that of the config's BNs."""
    for path in paths:
        eps = model.get_submodule(path).eps
        if eps != args.bn_eps:
            raise ConfigError(
                f'--bn-eps is {args.bn_eps:g}, but in {config} that of '
                f'{path} is {eps:g}; give --bn-eps {eps:g}')


def build(cfg, value):
    """Return a config's detector in test mode, as built."""
    cfg = copy.deepcopy(cfg)
    switch_model(cfg.model, value)
    torch.manual_seed(0)  # what the checkpoint does not hold is the same
    model = MODELS.build(cfg.model)
    model.eval()
    return model


def bn_paths(model):
    """Return the paths of a model's BNs."""
    return [path for path, module in model.named_modules()
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]


def pair_norms(switched, paths, plan):
    """Return, by the paths of BNs, those of the norms in their place.

    mmcv names a norm by its kind; a name in mmdet's own code stays. So does
    a BN for which there is no other norm.
    """
    norms = [path for path, module in switched.named_modules()
             if plan.norm.is_layer(module)]
    pairs = ((path, new) for path in paths
             for new in (mmcv_name(path, plan), path) if new in norms)
    return dict(pairs)


def check_shapes(option, config, model, state, paths, args):
    """Refuse weights of another model; each BN must be among them."""
    needed = {f'{path}.running_mean' for path in paths}
    for key, value in model.state_dict().items():
        if key in state and state[key].shape != value.shape or (
                key in needed - state.keys()):
            raise ConfigError(f'{option}: {args.source} is not of {config}, '
                              f'it has no {key} of that shape')


@torch.no_grad()
def outputs(model, paths, images):
    """Return what modules of a model give, and the maps of its neck."""
    kept, hooks = {}, []
    for path in paths:
        hooks.append(model.get_submodule(path).register_forward_hook(
            lambda module, args, out, path=path: kept.__setitem__(path, out)))
    maps = model.extract_feat(images)
    for hook in hooks:
        hook.remove()
    kept = {path: kept[path].clone() for path in paths if path in kept}
    return kept | {f'map {i}': map_ for i, map_ in enumerate(maps)}


if __name__ == '__main__':
    main()
