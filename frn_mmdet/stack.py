"""The OpenMMLab packages underneath: OneDL's or OpenMMLab's own."""

try:
    import mmcv  # noqa: F401
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        'frn_mmdet needs mmengine, mmcv and mmdet, and '
        f'{error.name} is not installed: pip install "frn_mmdet[onedl]" '
        '(maintained, current torch) or "frn_mmdet[openmmlab]"') from error

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint


def allow_own_checkpoints() -> None:
    """Let mmengine 0.10.7 load what it saved, on torch 2.6 and later.

    A checkpoint holds the log (``HistoryBuffer``, NumPy arrays) beside the
    weights. torch >= 2.6 loads weights only, unless a class is declared
    safe. OneDL's mmengine declares these itself when it loads.
    """
    if hasattr(checkpoint, 'get_torch_safe_globals') or not hasattr(
            torch.serialization, 'add_safe_globals'):
        return
    core = np._core if hasattr(np, '_core') else np.core
    torch.serialization.add_safe_globals([
        HistoryBuffer, np.ndarray, np.dtype, core.multiarray._reconstruct,
        core.multiarray.scalar,
        type(np.dtype(np.float64)),
        type(np.dtype(np.int64)), getattr, slice
    ])
