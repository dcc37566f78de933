"""From a value of ``model.norm_cfg`` to the norms of a built detector."""

from .sites import NormSite, norm_sites
from .ws import fold_ws

__all__ = ['NormSite', 'fold_ws', 'norm_sites']
