"""Run mmdet's own tools, after a look at what they are given."""

import argparse
import atexit
import errno
import importlib.util
import logging
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import mmdet
import torch
from mmengine.config import Config
from mmengine.device import get_device

from ..errors import ConfigError
from ..utils.command_line import NO_DICTS
from .check_data import (
    check_coco_data,
    check_coco_evaluators,
    empty_data_explained,
)
from .loading import checkpoints_explained

# What a full or a read-only disk says, and a folder of somebody else.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES,
              errno.EPERM)


def run_mmdet_tool(name: str, splits: tuple[str, ...]) -> None:
    """Run one of the tools that mmdet installs, with the same arguments.

    The tool is mmdet's, so its flags are those of the installed version, and
    its own parser reads them. What a user can put right ends in one sentence
    instead of a traceback.

    Args:
        name (str): File in mmdet's ``tools``, such as ``train.py``.
        splits (tuple[str]): Which of train, val, test it reads.
    """
    try:
        tool = _import_tool(name)
        args = _parse_arguments(tool)
        _check_arguments(args, splits)
        if args.launcher == 'pytorch' and get_device() == 'cpu':
            _start_group_of_cpus()
        with checkpoints_explained(), empty_data_explained():
            tool.main()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            if args.launcher == 'pytorch':
                _end_process()
    except ConfigError as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        sys.exit(f'error: {error.filename or "the disk"}: {error.strerror}')


def _import_tool(name: str) -> ModuleType:
    path = Path(mmdet.__file__).with_name('.mim') / 'tools' / name
    if not path.is_file():
        raise ConfigError(f'mmdet has no {path}; reinstall it from its wheel')
    spec = importlib.util.spec_from_file_location(f'mmdet_{path.stem}', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def _parse_arguments(tool: ModuleType) -> argparse.Namespace:
    """What the tool's ``main`` will read from the command line again."""
    try:
        return tool.parse_args()
    except AssertionError as error:  # of mmengine's DictAction
        raise ConfigError(f'--cfg-options: {error}') from error
    except ValueError as error:  # of the same: a word without a =
        raise ConfigError(
            '--cfg-options takes every word up to the next option for '
            'KEY=VALUE; the config stands before it, or behind another '
            'option') from error
    except RecursionError as error:  # of the same: [dict(a=1, b=2)]
        raise ConfigError(NO_DICTS) from error


def _check_arguments(args: argparse.Namespace,
                     splits: tuple[str, ...]) -> None:
    """Check what is named on the line: files, folders, the data."""
    _check_file('config', args.config)
    for what in 'checkpoint', 'resume':  # of test.py, of train.py
        path = getattr(args, what, None)
        if path not in (None, 'auto') and '://' not in path:
            _check_file(what, os.path.expanduser(path))
    try:
        cfg = Config.fromfile(args.config)
    except (SyntaxError, FileNotFoundError) as error:
        raise ConfigError(f'config: {args.config}: {error}') from error
    try:
        cfg.merge_from_dict(args.cfg_options or {})
    except (KeyError, TypeError) as error:
        raise ConfigError(f'--cfg-options: {error.args[0]}') from error
    check_coco_data(cfg, splits)
    check_coco_evaluators(cfg, splits)
    out = getattr(args, 'out', None)
    if out is not None and not out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out: {out} does not end in .pkl')
    # Last, since it makes them.
    _check_folder('work_dir', args.work_dir or cfg.get('work_dir')
                  or 'work_dirs', '; --work-dir names another')
    if out is not None:
        _check_folder('--out', os.path.dirname(out) or '.')


def _check_file(what: str, path: str) -> None:
    if not Path(path).is_file():
        raise ConfigError(f'{what}: no file {path}')


def _check_folder(what: str, path: str, hint: str = '') -> None:
    """Make a folder, and see whether something can be written there."""
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(
            f'{what}: {path} cannot be written: {error.strerror}{hint}'
        ) from error


def _end_process():
    """End one of several processes, as all of Python's part of it has.

    A thread of the group that still wants the interpreter while that is
    taken down aborts the process, after everything was written (Python 3.11
    unwinds it through C++; seen twice, on a busy machine).
    """
    logging.shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _start_group_of_cpus() -> None:
    """Let processes without a GPU train together.

    mmengine selects a CUDA device and gives its number to the model wrapper,
    unless a process group is there and the wrapper's config says otherwise.
    """
    torch.distributed.init_process_group('gloo')
    # First on the line, where whatever the user wrote goes on as it is. The
    # launcher is there again only to end the options.
    sys.argv[1:1] = [
        '--cfg-options',
        'model_wrapper_cfg.type=MMDistributedDataParallel',
        'model_wrapper_cfg.device_ids=None',
        'model_wrapper_cfg.broadcast_buffers=False',
        '--launcher', 'pytorch'
    ]
