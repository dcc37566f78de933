"""What goes wrong with a checkpoint as it is loaded, in one sentence."""

import contextlib
import re
import traceback
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from types import FrameType
from urllib.error import URLError

import torch
from mmengine.runner import CheckpointLoader, Runner, checkpoint
from torch.distributed import distributed_c10d

from ..errors import ConfigError

_LOAD = CheckpointLoader.load_checkpoint.__func__.__code__
_HTTP = checkpoint.load_from_http.__code__
_HOME = checkpoint._get_mmengine_home.__code__
_TABLES = tuple(
    loader.__code__ for loader in (
        checkpoint.load_from_openmmlab, checkpoint.load_from_mmcls,
        checkpoint.load_from_torchvision))
_FILL = (checkpoint.load_checkpoint.__code__,
         checkpoint._load_checkpoint_to_model.__code__)
_MATCH = checkpoint.load_state_dict.__code__
_RESUME = Runner.resume.__code__
_NAMING = (_LOAD, _FILL[0], _RESUME, Runner.load_checkpoint.__code__)
NETWORK = (URLError, HTTPException, TimeoutError, ConnectionError)


@contextlib.contextmanager
def checkpoints_explained() -> Iterator[None]:
    """Let a broken checkpoint end in a sentence that names it.

    mmengine loads in many places (``init_cfg``, ``load_from``, ``--resume``,
    ``init_detector``) and a broken file may raise anything there. Which file
    it was, the stack knows; other errors pass as they are.

    Raises:
        ConfigError: If a checkpoint is broken, or not of what it is for.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        sentence = _explain(error)
        if sentence is None:
            raise
        raise ConfigError(sentence) from error


def _explain(error: Exception) -> str | None:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [frame.f_locals['filename'] for frame in frames
             if frame.f_code in _NAMING]
    if not files:
        return None
    file = files[-1]
    reason = str(error).partition('\n')[0] or type(error).__name__
    if any(frame.f_code is _LOAD for frame in frames):
        return (f'the checkpoint {file} cannot be '
                f'{_not_loaded(error, frames, reason)}')
    if frames[-1].f_code is _MATCH:
        return (f'the checkpoint {file} does not fit the model; keys '
                + _mismatch(error, frames[-1].f_locals))
    if frames[-1].f_code in _FILL:
        return f'the checkpoint {file} holds no weights'
    if frames[-1].f_code is _RESUME and isinstance(error, KeyError):
        return (f'resume: the checkpoint {file} has no {reason}, so it is '
                'not of a training; to start from its weights use load_from')
    if 'parameter group' in reason:
        return ("resume: the checkpoint's optimizer is of another model; to "
                'start from its weights, with another norm, say, use '
                'load_from')
    return None


def _not_loaded(error: Exception, frames: list[FrameType],
                reason: str) -> str:
    """What a checkpoint cannot be, and why, as the end of a sentence."""
    codes = [frame.f_code for frame in frames]
    if codes[-1] in _TABLES and isinstance(error, KeyError):
        return f'found: mmengine has no address of {reason}'
    if _HOME in codes and isinstance(error, OSError):
        return (f'looked up: {error.filename}: {error.strerror}; '
                'MMENGINE_HOME names another folder')
    broken = f'loaded, it is broken or not one: {reason}'
    if _HTTP not in codes:
        return broken
    url = frames[codes.index(_HTTP)].f_locals['filename']
    kept = Path(torch.hub.get_dir(), 'checkpoints')
    if any(code.co_filename == distributed_c10d.__file__ for code in codes):
        return 'loaded: the process that downloads it for all has ended'
    if isinstance(error, NETWORK):
        return (f'downloaded from {url}: {getattr(error, "reason", error)}; '
                f'put that file into {kept}, or name one of your own')
    if isinstance(error, OSError):
        return (f'kept in {kept}: {error.strerror}; TORCH_HOME names another '
                'folder')
    return f'{broken}; it is kept in {kept}, delete it to download it again'


def _mismatch(error: Exception, found: dict) -> str:
    """Which keys do not match, of what mmengine has ``found``."""
    kinds = {
        'missing': found['missing_keys'],
        'unexpected': found['unexpected_keys'],
        'of another size': re.findall(r'size mismatch for (.+?):',
                                      str(error)),
    }
    return '; '.join(
        f'{kind}: {len(keys)} ({", ".join(keys[:3])}'
        f'{", ..." if len(keys) > 3 else ""})'
        for kind, keys in kinds.items() if keys)
