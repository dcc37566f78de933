"""Norm and activation layers, registered with mmengine."""

from .brn import BRN
from .conv_ws import ConvWS
from .frn import FRN
from .group_norm import GN, IN
from .layer_norm import MapLayerNorm
from .levels import LevelNorms
from .tlu import TLU
from .uncentred import GFRN, LFRN

__all__ = [
    'BRN', 'ConvWS', 'FRN', 'GFRN', 'GN', 'IN', 'LFRN', 'LevelNorms',
    'MapLayerNorm', 'TLU'
]
