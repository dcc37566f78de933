"""The study of docs/studies/pretrained.md: norms that start from BN.

python .dev_scripts/study_pretrained.py DATA OUT [--jobs N] [--only NAME ...]

DATA has the folders kangaroo and bccd, each in COCO's layout, and
mobilenet_v2_imagenet.pth with torchvision's names. Trains by
tools/compare_norms.py and tools/train.py, goes on where it was stopped, and
writes a table each:

OUT/kangaroo.md, OUT/bccd.md  every start of an ImageNet backbone
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
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from frn_mmdet import config_path
from frn_mmdet.utils.command_line import parser_of
from frn_mmdet.utils.markdown import table

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
    """

    title: str
    norm: str
    weights: str = WEIGHTS
    options: list[str] = []

    @property
    def folder(self):
        """Rows of the same weights and options are trained together."""
        words = [Path(self.weights).stem, *self.options]
        return '_'.join(word.replace('=', '-') for word in words)


SCRATCH = [Row('FRN from scratch', f'{FRN}:from_bn=False'),
           Row('GN from scratch', f'{GN}:from_bn=False')]
BNS = [Row('BN, statistics trained', BN),
       Row('BN, statistics frozen', BN, options=FROZEN)]


OTHERS = [Row('IN from BN, a = 10', f'IN{BACKBONE}'),
          Row('GN from BN, a = 10', GN),
          Row('LN from BN, a = 10', f'LN{BACKBONE}'),
          Row('GFRN from BN, a = 10', f'GFRN+ReLU{BACKBONE}:num_groups=8')]


def from_bn(a, title='', **kwargs):
    """Return the row of an FRN from BN."""
    return Row(f'FRN from BN, a = {a}{title}', f'{FRN}:from_bn={a}', **kwargs)


STARTS = dict(
    kangaroo=[
        *BNS, *map(from_bn, (100, 10, 1, 0)), *OTHERS,
        Row("GN, BN's gamma and beta", GN, AFFINE), *SCRATCH],
    bccd=[*BNS, from_bn(10), SCRATCH[0]],
    choices=[
        from_bn(10, ', no warm-up', options=NO_WARM_UP),
        from_bn(10, ', gamma and beta decay', options=DECAY),
        Row('FRN from BN, a = 1 and more, learnt',
            f'{FRN}:from_bn=1:learnable_eps=true'),
        from_bn(10, ', statistics of the 131 images', weights=SETTLED),
        from_bn(10, ', 20 epochs', options=LONGER),
        Row('BN, statistics trained, 20 epochs', BN, options=LONGER)])
# At the last learning rate alone, the better one for nearly all on kangaroo.
BRIEF = ('choices', 'bccd')


def main(argv=None):
    """Prepare the weights, train, report."""
    args = parse_args(argv)
    weights = prepare(args)
    for name in args.only:
        report = args.out / f'{name}.md'
        if name == 'detectors':
            text = study_detectors.run(args.out / name, args.seeds, args.jobs)
        else:
            batches = args.batch_sizes[:1 if name == 'choices' else None]
            lrs = args.lr[-1:] if name in BRIEF else args.lr
            for folder in dict.fromkeys(r.folder for r in STARTS[name]):
                rows = [r for r in STARTS[name] if r.folder == folder]
                compare(name, rows, weights, batches, lrs, args)
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
    if 'choices' in args.only and not (out / SETTLED).exists():
        torch.save(settle(state, args.data), out / SETTLED)
    return out


@torch.no_grad()
def settle(state, data):
    """Return the weights with the BN statistics of the kangaroos."""
    os.environ['KANGAROO_ROOT'] = str((data / 'kangaroo').resolve())
    cfg = Config.fromfile(CONFIGS / 'retinanet_mobilenet-v2_fpn_kangaroo.py')
    cfg.model.norm_cfg = dict(type='BN', parts='backbone')
    model = MODELS.build(cfg.model)
    model.backbone.load_state_dict(state)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    model.train()
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
            module.reset_running_stats()
    for first in range(0, len(dataset) - 15, 16):
        batch = pseudo_collate([dataset[first + i] for i in range(16)])
        model.backbone(model.data_preprocessor(batch, True)['inputs'])
    return model.backbone.state_dict()


def compare(name, rows, weights, batches, lrs, args):
    """Train a folder's norms by the comparison command."""
    data = 'kangaroo' if name == 'choices' else name
    command = [
        sys.executable, '-m', 'frn_mmdet', 'compare_norms',
        CONFIGS / f'retinanet_mobilenet-v2_fpn_{data}.py', '--norms',
        *(row.norm for row in rows), '--batch-sizes', *batches, '--seeds',
        args.seeds, '--lr', *lrs, '--jobs', args.jobs, '--out',
        args.out / name / rows[0].folder]
    if rows[0].options:
        command += ['--cfg-options', *rows[0].options]
    subprocess.run(
        [str(word) for word in command], check=True,
        env=os.environ | {
            f'{data.upper()}_ROOT': str((args.data / data).resolve()),
            'MOBILENET_V2': str(weights / rows[0].weights)})


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
