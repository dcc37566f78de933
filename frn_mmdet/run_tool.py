"""Run mmdet's own tools, after a look at what they are given."""

import argparse
import runpy
import sys
from pathlib import Path

import mmdet
import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device

from .check_data import check_coco_data
from .errors import ConfigError


def run_mmdet_tool(name: str, splits: tuple[str, ...]) -> None:
    """Run one of the tools that mmdet installs, with the same arguments.

    The tool is mmdet's, so its flags are those of the installed version.
    What a user can mend ends in one sentence instead of a traceback.

    Args:
        name (str): File in mmdet's ``tools``, such as ``train.py``.
        splits (tuple[str]): Which of train, val, test it reads.
    """
    tool = Path(mmdet.__file__).with_name('.mim') / 'tools' / name
    try:
        if not tool.is_file():
            raise ConfigError(
                f'mmdet has no {tool}; reinstall it from its wheel')
        args = _parse_arguments()
        _check_arguments(args, splits)
        if args.launcher == 'pytorch' and get_device() == 'cpu':
            _start_group_of_cpus()
        runpy.run_path(str(tool), run_name='__main__')
    except ConfigError as error:
        sys.exit(f'error: {error}')
    except ModuleNotFoundError as error:
        if error.name != 'torchvision':
            raise
        sys.exit('error: mmengine needs torchvision to find a torchvision:// '
                 'checkpoint; install the one of your torch, or give init_cfg '
                 'a file, or set model.norm_cfg.from_bn=False to start from '
                 'scratch')
    except ValueError as error:
        if 'parameter group' not in str(error):
            raise
        sys.exit("error: resume: the checkpoint's optimizer is of another "
                 'model; to start from its weights, with another norm, say, '
                 'use load_from')


def _parse_arguments() -> argparse.Namespace:
    """The few arguments that matter here; mmdet's tool parses them all."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('config', nargs='?')
    parser.add_argument('checkpoint', nargs='?')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    parser.add_argument('--launcher')
    parser.add_argument('-h', '--help', action='store_true')
    return parser.parse_known_args()[0]


def _check_arguments(args: argparse.Namespace,
                     splits: tuple[str, ...]) -> None:
    """Check the config, the checkpoint and the data named on the line."""
    if args.config is None or args.help:
        return  # mmdet's tool has its say
    _check_file('config', args.config)
    if args.checkpoint is not None and '://' not in args.checkpoint:
        _check_file('checkpoint', args.checkpoint)
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    check_coco_data(cfg, splits)


def _check_file(what: str, path: str) -> None:
    if not Path(path).is_file():
        raise ConfigError(f'{what}: no file {path}')


def _start_group_of_cpus() -> None:
    """Let processes without a GPU train together.

    mmengine selects a CUDA device and gives its number to the model wrapper,
    unless a process group is there and the wrapper's config says otherwise.
    """
    torch.distributed.init_process_group('gloo')
    if '--cfg-options' not in sys.argv:
        sys.argv.append('--cfg-options')
    at = sys.argv.index('--cfg-options') + 1
    sys.argv[at:at] = [
        'model_wrapper_cfg.type=MMDistributedDataParallel',
        'model_wrapper_cfg.device_ids=None',
        'model_wrapper_cfg.broadcast_buffers=False'
    ]
