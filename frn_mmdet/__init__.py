"""Filter Response Normalization for MMDetection: one key switches norms."""

from . import stack  # isort: skip  (first: it says what is missing)
from .layers import FRN, TLU
from .ops import frn, kernel_for, use_kernel
from .switch import NormSite, fold_ws, norm_sites
from .utils.installed import config_path
from .version import __version__

stack.allow_own_checkpoints()

__all__ = [
    'FRN', 'NormSite', 'TLU', '__version__', 'config_path', 'fold_ws', 'frn',
    'kernel_for', 'norm_sites', 'use_kernel'
]
