"""Norm and activation layers, registered with mmengine."""

from .brn import BRN
from .conv_ws import ConvWS
from .frn import FRN
from .layer_norm import MapLayerNorm
from .levels import LevelNorms
from .tlu import TLU
from .uncentred import GFRN, LFRN

__all__ = [
    'BRN', 'ConvWS', 'FRN', 'GFRN', 'LFRN', 'LevelNorms', 'MapLayerNorm', 'TLU'
]
