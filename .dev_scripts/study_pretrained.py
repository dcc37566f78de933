"""The study of docs/studies/pretrained.md: norms that start from BN.

python .dev_scripts/study_pretrained.py DATA OUT [--jobs N] [--only NAME ...]

DATA has the folders kangaroo and bccd, each in COCO's layout, and
mobilenet_v2_imagenet.pth with torchvision's names. Trains by
tools/compare_norms.py and tools/train.py, goes on where it was stopped, and
writes a table each:

OUT/kangaroo.md, OUT/bccd.md  every start of an ImageNet backbone
OUT/statistics.md             with statistics of the kangaroos themselves
OUT/choices.md                what else might matter, on kangaroo
OUT/detectors.md              a BN detector that goes on as FRN
"""

import csv
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import study_detectors
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from frn_mmdet import config_path
from frn_mmdet.utils.command_line import parser_of
from frn_mmdet.utils.markdown import table

HERE = str(Path(__file__).resolve().parent)
CONFIGS = Path(config_path('pretrained/README.md')).parent
BACKBONE = ':parts=backbone'
BN = f'BN{BACKBONE}'
FRN = f'FRN+ReLU{BACKBONE}'  # MobileNetV2 has ReLU6, which no TLU stands for
GN = f'GN{BACKBONE}:num_groups=8'
WEIGHTS = 'mobilenet_v2.pth'
AFFINE = 'mobilenet_v2_gn.pth'
SETTLED = 'mobilenet_v2_kangaroo.pth'
FROZEN = ['model.backbone.norm_eval=True']
NO_WARM_UP = ['param_scheduler.0.start_factor=1.0']
LONG_WARM_UP = ['param_scheduler.0.end=3', 'param_scheduler.1.begin=3',
                'param_scheduler.1.T_max=7']
LONGER = ['train_cfg.max_epochs=20', 'train_cfg.val_interval=20',
          'param_scheduler.1.end=20', 'param_scheduler.1.T_max=19']
DECAY = ['optim_wrapper.paramwise_cfg.norm_decay_mult=1.0']


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        title (str): What it says.
        norm (str): See tools/compare_norms.py.
        weights (str): The file that the backbone starts from.
        options (list[str]): Overrides of the config.
        lr (str): If not as the others.
        steps (str): Arguments of a NormSteps, see norm_steps.py.
    """

    title: str
    norm: str
    weights: str = WEIGHTS
    options: list[str] = []
    lr: str = ''
    steps: str = ''

    @property
    def folder(self):
        """Rows that differ in their norm alone are trained together."""
        words = [Path(self.weights).stem, *self.options, self.lr, self.steps]
        return '_'.join(word.replace('=', '-') for word in words if word)


NORMS = dict(FRN=FRN, IN=f'IN{BACKBONE}', GN=GN, LN=f'LN{BACKBONE}',
             GFRN=f'GFRN+ReLU{BACKBONE}:num_groups=8')
BNS = [Row('BN, statistics trained', BN),
       Row('BN, statistics frozen', BN, options=FROZEN)]


def from_bn(name, *shares, title='', **kwargs):
    """Return rows of a norm that starts from BN."""
    return [Row(f'{name} from BN, a = {a}{title}',
                f'{NORMS[name]}:from_bn={a}', **kwargs) for a in shares]


def scratch(*names):
    """Return rows of norms that start from nothing."""
    return [Row(f'{name} from scratch', f'{NORMS[name]}:from_bn=False')
            for name in names]


def both(title, **kwargs):
    """Return the rows of a choice."""
    return [*from_bn('FRN', 10, title=title, **kwargs),
            *from_bn('IN', 1, title=title, **kwargs)]


STARTS = dict(
    kangaroo=[
        *BNS, *from_bn('FRN', 100, 10, 1, 0), *from_bn('IN', 100, 10, 3, 1),
        *from_bn('GN', 100, 10, 1), *from_bn('LN', 10),
        *from_bn('GFRN', 10), Row("GN, BN's gamma and beta", GN, AFFINE),
        *scratch('FRN', 'IN', 'GN', 'LN')],
    bccd=[*BNS, *from_bn('FRN', 10, 1), *from_bn('IN', 10, 1),
          *from_bn('GN', 100, 10), *from_bn('LN', 10), *from_bn('GFRN', 10),
          *scratch('FRN')],
    statistics=[row for name, shares in dict(
        FRN=(10, 1), IN=(10, 1), GN=(10, ), LN=(10, ), GFRN=(10, )).items()
                for row in from_bn(name, *shares, weights=SETTLED)],
    choices=[
        *from_bn('FRN', 10, title=', no warm-up', options=NO_WARM_UP),
        *both(', warm-up of 3 epochs', options=LONG_WARM_UP),
        *from_bn('FRN', 10, title=', gamma and beta decay', options=DECAY),
        *both(', gamma and beta at 0.2 of the LR', steps='factor=0.2'),
        *both(', each gamma and beta as gamma is large', steps='alike=True'),
        Row('FRN from BN, a = 1 and more, learnt',
            f'{FRN}:from_bn=1:learnable_eps=true'),
        *both(', own statistics, twice the LR', weights=SETTLED, lr='0.001'),
        *from_bn('FRN', 10, title=', 20 epochs', options=LONGER),
        Row('BN, statistics trained, 20 epochs', BN, options=LONGER)])
# On kangaroo at 2 images alone.
OF_KANGAROO = ('statistics', 'choices')
# At the last learning rate alone, the better one for nearly all on kangaroo.
BRIEF = (*OF_KANGAROO, 'bccd')


def main(argv=None):
    """Prepare the weights, train, report."""
    args = parse_args(argv)
    weights = prepare(args)
    for name in args.only:
        report = args.out / f'{name}.md'
        if name == 'detectors':
            text = study_detectors.run(args.out / name, args.seeds, args.jobs)
        else:
            batches = args.batch_sizes[:1 if name in OF_KANGAROO else None]
            for folder in dict.fromkeys(r.folder for r in STARTS[name]):
                rows = [r for r in STARTS[name] if r.folder == folder]
                compare(name, rows, weights, batches, args)
            text = page(args.out / name, STARTS[name], batches)
        report.write_text(text)
        print(f'{report}\n\n{text}', flush=True)


def parse_args(argv):
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.add_argument('data', type=Path, metavar='DATA')
    parser.add_argument('out', type=Path, metavar='OUT')
    names = [*STARTS, 'detectors']
    parser.add_argument('--only', nargs='+', default=names, choices=names)
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=[2, 1])
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--lr', nargs='+', default=['0.00025', '0.0005'],
                        help='at 2 images a step')
    parser.add_argument('--jobs', type=int, default=1)
    return parser.parse_args(argv)


def prepare(args):
    """Write torchvision's weights under mmdet's names; return their folder.

    Both list their layers in the order of the data, so the n-th convolution
    of one is the n-th of the other, and so with the norms.
    """
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    init_default_scope('mmdet')
    names = MODELS.build(dict(type='MobileNetV2')).state_dict()
    weights = torch.load(args.data / 'mobilenet_v2_imagenet.pth')
    weights = {key: value for key, value in weights.items()
               if not key.startswith('classifier.')}
    state = {}
    for (name, old), value in zip(names.items(), weights.values(),
                                  strict=True):
        assert old.shape == value.shape, name
        state[name] = value
    torch.save(state, out / WEIGHTS)
    torch.save({key.replace('.bn.', '.gn.'): value
                for key, value in state.items()
                if '.running_' not in key and 'num_batches' not in key},
               out / AFFINE)
    if set(OF_KANGAROO) & set(args.only) and not (out / SETTLED).exists():
        run('convert_checkpoint', out / WEIGHTS, out / SETTLED, '--norm',
            'BN', '--statistics', config_of('kangaroo'), data='kangaroo',
            args=args, weights=out / WEIGHTS)
    return out


def config_of(data):
    """Return the path of a data set's config."""
    return CONFIGS / f'retinanet_mobilenet-v2_fpn_{data}.py'


def compare(name, rows, weights, batches, args):
    """Train a folder's norms by the comparison command."""
    row, data = rows[0], 'kangaroo' if name in OF_KANGAROO else name
    lrs = [row.lr] if row.lr else args.lr[-1:] if name in BRIEF else args.lr
    config = config_of(data)
    if row.steps:
        config = with_steps(config, row, args.out)
    options = ['--cfg-options', *row.options] if row.options else []
    run('compare_norms', config, '--norms', *(row.norm for row in rows),
        '--batch-sizes', *batches, '--seeds', args.seeds, '--lr', *lrs,
        '--jobs', args.jobs, '--out', args.out / name / row.folder, *options,
        data=data, args=args, weights=weights / row.weights)


def with_steps(config, row, out):
    """Write the config with the hook of a row; return its path."""
    path = out / f'{row.folder}.py'
    path.write_text(
        f'_base_ = {str(config)!r}\n'
        "custom_imports = dict(imports=['frn_mmdet', 'norm_steps'])\n"
        f"custom_hooks = [dict(type='NormSteps', {row.steps})]\n")
    return path


def run(command, *arguments, data, args, weights):
    """Run a command of frn_mmdet, for a data set and weights."""
    subprocess.run(
        [sys.executable, '-m', 'frn_mmdet', command, *map(str, arguments)],
        check=True,
        env=os.environ | {
            f'{data.upper()}_ROOT': str((args.data / data).resolve()),
            'MOBILENET_V2': str(weights),
            'PYTHONPATH': os.pathsep.join(  # for norm_steps.py
                [HERE, os.environ.get('PYTHONPATH', '')])})


def page(folder, rows, batches):
    """Return the table: mean and deviation over seeds, and the rate."""
    lines = []
    for row in rows:
        results = read(folder / row.folder / 'results.csv')
        line = {'backbone': row.title}
        for batch in batches:
            line[f'{batch} a step'], line[f'LR at {batch}'] = score(
                results, row.norm, str(batch))
        lines.append(line)
    return table(lines, list(lines[0])) + '\n'


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
    return study_detectors.points(of_rate[lr].values()), f'{float(lr):g}'


if __name__ == '__main__':
    main()
