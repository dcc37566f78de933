"""Switch the norms of every config of the installed mmdet, and table it.

python .dev_scripts/check_zoo.py [FOLDER ...] [--norm FRN] [--out FILE]

Each model is built as a user would write it: its type becomes
frn_mmdet.NAME, norm_cfg is set, nothing else is touched. Exit status 1 if one
fails with anything but a sentence for the user.
"""

import argparse
import copy
import json
import logging
import os
import sys
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import mmdet
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from frn_mmdet.errors import ConfigError
from frn_mmdet.switch.norms import PARTS, parse_norm_cfg, part_of, read_norm
from frn_mmdet.switch.sites import norms_of
from frn_mmdet.utils.whole_file import whole_file

PACKAGES = Path(mmdet.__file__).parents[1]
ZOO = PACKAGES / 'mmdet' / '.mim' / 'configs'
COLUMNS = ('folder', 'detector', 'norms', 'TLU', 'stay', 'tokens', 'result',
           'configs')
SWITCHED, REFUSED, NOT_BUILT, FAILED = (
    'switched', 'refused', 'not built by mmdet', 'failed')


def main(argv=None):
    """Print the table; exit 1 if a config failed."""
    args = parse_args(argv)
    try:
        parse_norm_cfg(read_norm(args.norm))
        rows = check(args.folders, args.norm, args.jobs)
        text = report(rows, args.norm)
        if args.out:
            with whole_file(args.out, '--out') as file:
                file.write(text.encode())
        else:
            print(text, end='')
    except ConfigError as error:
        sys.exit(f'error: {error}')
    sys.exit(any(row['kind'] == FAILED for row in rows))


def parse_args(argv):
    """Read the command line; no FOLDER means the whole zoo."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        'folders', metavar='FOLDER', nargs='*', default=['.'],
        help='of mmdet/.mim/configs, such as retinanet; default: all')
    parser.add_argument(
        '--norm', default='FRN', help='as of compare_norms.py; default: FRN')
    parser.add_argument(
        '--jobs', type=int, default=1, help='models at a time; default: 1')
    parser.add_argument(
        '--out', type=Path, help='file for the table; default: printed')
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f'argument --jobs: {args.jobs} is not 1 or more')
    if args.out and args.out.is_dir():  # said before the hour, not after it
        parser.error(f'argument --out: {args.out} is a folder; give a file')
    return args


def check(folders, norm, jobs=1):
    """Return a row for each config; equal models are built once."""
    models, rows = defaultdict(list), []
    for path in configs(folders):
        name = str(path.relative_to(ZOO))
        try:
            model = Config.fromfile(path).model
        except Exception as error:  # any: a config is code
            rows.append(dict(config=name, kind=NOT_BUILT, detector='-',
                             result=f'{NOT_BUILT}: {sentence(error)}'))
            continue
        models[json.dumps(model.to_dict(), sort_keys=True,
                          default=str)].append((name, model))
    tasks = [same[0][1] for same in models.values()]
    with ProcessPoolExecutor(jobs, initializer=_prepare) as pool:
        results = pool.map(partial(switch, norm=norm), tasks)
        for same, row in zip(models.values(), results, strict=True):
            rows += [dict(row, config=name) for name, _ in same]
    return sorted(rows, key=lambda row: row['config'])


def configs(folders):
    """Return the configs in the folders that are not parts of others."""
    found = {path for folder in folders
             for path in (ZOO / folder).rglob('*.py')
             if '_base_' not in path.parts}
    if not found:
        raise SystemExit(f'FOLDER: no configs in {", ".join(folders)}; there '
                         f'are those of {ZOO}')
    return sorted(found)


def _prepare():
    """Of each process: quiet, on one thread, where mmdet's paths begin."""
    warnings.simplefilter('ignore')
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    os.chdir(ZOO.parent)
    init_default_scope('mmdet')


def switch(model, norm):
    """Return the row of a model."""
    type_ = model['type']
    name = type_ if isinstance(type_, str) else type_.__name__
    row = dict(detector=name)
    switched = ConfigDict(
        model, type=f'frn_mmdet.{name}', norm_cfg=read_norm(norm))
    try:
        detector = build(switched)
    except ConfigError as error:
        why = str(error).partition(';')[0]
        return dict(row, kind=REFUSED, result=f'{REFUSED}: {why}')
    except Exception as error:  # any: mmdet's own, or a bug of the switch
        kind = FAILED if can_build(model) else NOT_BUILT
        return dict(row, kind=kind, result=f'{kind}: {sentence(error)}')
    outcome = detector.switch_outcome
    unnamed = left_unnamed(detector, norm)
    if unnamed:
        return dict(row, kind=FAILED, result=f'{FAILED}: {unnamed[0]} is not '
                    f'{norm}, and no warning names it')
    norms = Counter(site.norm for site in outcome.sites)
    tlus = sum(site.activation == 'TLU' for site in outcome.sites)
    stay = sorted(outcome.stayed)
    but = f', but for {stay[0]}' if stay else ''
    more = f' and {len(stay) - 1} more' if stay[1:] else ''
    notes = [f'could not run on a small image: {failure}'
             for failure in outcome.failures[:1]]
    return dict(row, kind=SWITCHED, norms=norms[norm.partition(':')[0]],
                TLU=tlus, stay=len(stay),
                tokens=norms['LayerNorm'],
                result='; '.join([SWITCHED + but + more, *notes]))


def left_unnamed(detector, norm):
    """Return paths of norms that stayed without a word, LayerNorms aside."""
    row = parse_norm_cfg(read_norm(norm)).norm
    return [path for path, norm in norms_of(detector)
            if not row.is_layer(norm) and type(norm) is not nn.LayerNorm
            and path not in detector.switch_outcome.stayed
            and part_of(path) in PARTS]


def build(model):
    """Build a model, without its teacher's weights, which are on the web."""
    model = copy.deepcopy(model)
    model.pop('teacher_ckpt', None)
    try:
        with torch.device('meta'):  # no time for weights
            return MODELS.build(copy.deepcopy(model))
    except ConfigError:
        raise
    except Exception:  # some compute while they are built
        return MODELS.build(copy.deepcopy(model))


def can_build(model):
    """Return whether mmdet itself can build a model."""
    try:
        build(model)
    except Exception:  # any: it is asked about
        return False
    return True


def sentence(error):
    """Return an error's kind and its first line."""
    line = str(error).partition('\n')[0].partition('. Please')[0]
    return f'{type(error).__name__}: {line}'


def portable(text):
    """Return a text in which no path says where this machine has mmdet."""
    for folder in ZOO, PACKAGES:  # the longer first
        text = text.replace(f'{folder}{os.sep}', '')
    return text


def report(rows, norm):
    """Return the page: a summary, then the table, equal rows as one."""
    kinds = Counter(row['kind'] for row in rows)
    stay = sum(bool(row.get('stay')) for row in rows)
    groups = defaultdict(list)
    for row in rows:
        folder, _, name = row['config'].rpartition('/')
        result = portable(row['result']).replace('|', '/')
        cells = dict(row, folder=folder, result=result)
        key = tuple(str(cells.get(column, '-')) for column in COLUMNS[:-1])
        groups[key].append(name.removesuffix('.py'))
    lines = [
        f"# What `norm_cfg='{norm}'` does on every config of mmdet's zoo", '',
        f'`python .dev_scripts/check_zoo.py --norm {norm}` with mmdet '
        f'{mmdet.__version__}, {len(rows)} configs: ' + ', '.join(
            f'{kinds[kind]} {kind}'
            for kind in (SWITCHED, REFUSED, NOT_BUILT, FAILED))
        + f'. In {stay} of those switched, norms over a map stay that are '
        "not the plan's; a warning names each and says why.", '',
        '- norms: of the plan; TLU: its thresholds, those after sums too;',
        "- stay: norms over a map that are not the plan's;",
        '- tokens: layer norms over tokens or vectors, which are left alone.',
        '', '| ' + ' | '.join(COLUMNS) + ' |', '|---' * len(COLUMNS) + '|'
    ]
    lines += ['| ' + ' | '.join((*key, ', '.join(names))) + ' |'
              for key, names in groups.items()]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
