"""Norm and activation layers, registered with mmengine."""

from .frn import FRN
from .layer_norm import MapLayerNorm
from .tlu import TLU

__all__ = ['FRN', 'MapLayerNorm', 'TLU']
