"""Filter Response Normalization for MMDetection: one key switches norms."""

from typing import Any

from . import stack  # isort: skip  (first: it says what is missing)
from .errors import ConfigError
from .layers import BRN, FRN, GFRN, GN, IN, LFRN, TLU, ConvWS
from .layers import MapLayerNorm as LN
from .ops import frn, kernel_for, tlu, use_kernel
from .switch import NormSite, fold_ws, norm_sites, switch_norms
from .utils.installed import config_path
from .version import __version__

stack.allow_own_checkpoints()
stack.find_torchvision_weights()

__all__ = [
    'BRN', 'ConfigError', 'ConvWS', 'FRN', 'GFRN', 'GN', 'IN', 'LFRN', 'LN',
    'NormSite', 'NormSwitch', 'ResNetV2', 'TLU', '__version__', 'config_path',
    'fold_ws', 'frn', 'kernel_for', 'norm_sites', 'switch_norms', 'tlu',
    'use_kernel'
]


def __getattr__(name: str) -> Any:
    """Import models when they are asked for, since they import mmdet."""
    if name in ('NormSwitch', 'ResNetV2'):
        from . import models
        return getattr(models, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
