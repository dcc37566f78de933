"""The OpenMMLab packages underneath: OneDL's or OpenMMLab's own."""

try:
    import mmcv  # noqa: F401
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        'frn_mmdet needs mmengine, mmcv and mmdet, and '
        f'{error.name} is not installed. Install torch, then ninja, wheel '
        'and "setuptools<81", then pip install --no-build-isolation '
        '"frn_mmdet[onedl]" (the maintained packages) or '
        '"frn_mmdet[openmmlab]" (their originals)') from error

from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint


def allow_own_checkpoints() -> None:
    """Let mmengine 0.10.7 load what it saved, on torch 2.6 and later.

    A checkpoint holds the log (``HistoryBuffer``, NumPy values) beside the
    weights. torch >= 2.6 loads weights only, unless a class is declared
    safe. OneDL's mmengine declares these itself while it loads.
    """
    if hasattr(checkpoint, 'get_torch_safe_globals') or not hasattr(
            torch.serialization, 'add_safe_globals'):
        return
    # NumPy 2 renamed its core, and a file may be from either side.
    core = getattr(np, '_core', None) or np.core
    functions = [(getattr(core.multiarray, name),
                  f'numpy.{module}.multiarray.{name}')
                 for name in ('_reconstruct', 'scalar')
                 for module in ('core', '_core')]
    dtypes = [type(np.dtype(code)) for code in ('f4', 'f8', 'i8', '?')]
    torch.serialization.add_safe_globals([
        HistoryBuffer, np.ndarray, np.dtype, *dtypes, *functions,
        (_history_method, 'builtins.getattr')
    ])


def _history_method(owner: Any, name: str) -> Any:
    """What stands for ``getattr``, as which a checkpoint names methods.

    The real one would let a file reach into any object.
    """
    methods = ('min', 'max', 'mean', 'current')
    if owner is not HistoryBuffer or name not in methods:
        raise UnpicklingError(
            f'a checkpoint may not refer to {name} of {owner}')
    return getattr(owner, name)
