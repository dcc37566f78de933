"""Train a detector with several norms at several batch sizes, and compare.

python tools/compare_norms.py CONFIG --norms FRN GN BN --batch-sizes 8 2 \
    --seeds 3 --out DIR

Every norm, batch size and seed is a training by tools/train.py. All see the
same number of images, and the learning rate grows with the batch, as in the
paper. Writes DIR/results.csv, results.md and results.png. The same command
goes on where an earlier one stopped; with other norms, batch sizes, seeds or
learning rates it trains those, and reports all that is in DIR. To repeat one
training, delete its folder in DIR/cells.
Exit status 1 if nothing was trained, or no training has a result.
"""

import logging
import signal
import sys
from pathlib import Path

import torch

from frn_mmdet.compare import Comparison, Runner
from frn_mmdet.compare.folder import Folder, begun_in
from frn_mmdet.compare.launch import LAUNCHERS
from frn_mmdet.compare.probe import estimate
from frn_mmdet.compare.result import is_ok
from frn_mmdet.errors import ConfigError
from frn_mmdet.utils.command_line import CfgOptions, parser_of

TRAIN = Path(__file__).with_name('train.py')


def main(argv=None):
    """Plan, train, report."""
    args = parse_args(argv)
    logging.disable(logging.WARNING)  # each norm's detector is built once
    try:
        check_machine(args)
        comparison = Comparison(
            args.config, args.norms, args.batch_sizes, args.seeds, args.lr,
            args.same_lr, args.same_steps, args.pretrained, args.gpus,
            args.cfg_options, begun_in(args.out))
        folder = Folder(args.out, comparison)
        folder.check(args.jobs)
        print(comparison.describe(), flush=True)
        if args.dry_run:
            print(estimate(folder, TRAIN, args.jobs, args.launcher))
            return
        stopped = Runner(
            folder, TRAIN, args.jobs, args.launcher, ['python', *sys.argv],
            say).run()
    except ConfigError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:  # the Runner takes those while it trains
        print('Stopped before anything was trained.')
        sys.exit(128 + signal.SIGINT)
    except OSError as error:  # the disk is full, say
        sys.exit(f'error: {error}; what has ended is kept in {args.out}')
    if stopped:
        print('Stopped; the same command goes on.')
        sys.exit(128 + stopped)
    print((args.out / 'results.md').read_text())
    print(f'{args.out}: results.csv, results.md, results.png')
    if not any(is_ok(row) for cell, row in folder.results().items()
               if cell in comparison.asked):
        sys.exit(f'error: none of {comparison.asked.count} trainings has a '
                 f'result; {args.out}/results.md says why')


def parse_args(argv):
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.add_argument(
        'config', metavar='CONFIG',
        help="a config file, or mmdet's own as mmdet::folder/name.py")
    parser.add_argument(
        '--norms', nargs='+', required=True, metavar='NORM',
        help='values of model.norm_cfg: FRN, FRN+ReLU, BN+TLU, '
        'GN:num_groups=8, ...')
    parser.add_argument(
        '--batch-sizes', nargs='+', type=int, required=True, metavar='N',
        help='images per GPU')
    parser.add_argument(
        '--seeds', type=int, default=3, metavar='N',
        help='how many (default: 3)')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument(
        '--lr', nargs='+', type=float, metavar='LR',
        help="peak learning rates at the config's auto_scale_lr."
        'base_batch_size (or its batch); of several, seed 0 chooses the best '
        "for each norm and batch size (default: the config's)")
    parser.add_argument(
        '--same-lr', action='store_true',
        help='one learning rate for every batch size')
    parser.add_argument(
        '--same-steps', action='store_true',
        help='the same number of steps, not of images')
    parser.add_argument(
        '--pretrained', action='store_true',
        help="keep the config's ImageNet checkpoint for the norms that can "
        'start from it (of BN: all without ws); otherwise all start from '
        'scratch if one cannot')
    parser.add_argument(
        '--jobs', type=int, default=1, metavar='N',
        help='trainings side by side (default: 1)')
    parser.add_argument(
        '--gpus', type=int, metavar='N',
        help='of each training; 0 trains on the CPU (default: 1 if there is '
        'one)')
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, default='pytorch',
        help='of trainings on several GPUs')
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE',
        help='overrides of the config')
    parser.add_argument(
        '--dry-run', action='store_true',
        help='print the plan and what it costs, and train nothing')
    return parser.parse_args(argv)


def check_machine(args):
    """Refuse jobs and GPUs that are not there; fill in the default."""
    if args.jobs < 1:
        raise ConfigError(f'--jobs: 1 is the least, got {args.jobs}')
    there = torch.cuda.device_count()
    if args.gpus is None:
        args.gpus = min(there, 1)
    if args.launcher == 'slurm':  # its GPUs are elsewhere
        if args.gpus < 1:
            raise ConfigError('--gpus: slurm trains on 1 GPU or more')
    elif args.gpus < 0 or args.gpus * args.jobs > there > 0:
        raise ConfigError(
            f'--gpus: {args.jobs} trainings side by side on {args.gpus} GPUs '
            f'each, and this machine has {there}')
    elif args.gpus > there:
        raise ConfigError(
            f'--gpus: {args.gpus} asked for, and this machine has none that '
            'PyTorch can use; choose 0 for the CPU')


def say(line):
    """Print progress, also where the output is a file."""
    print(line, flush=True)


if __name__ == '__main__':
    main()
