"""From a value of ``norm_cfg`` to the norms of a built network."""

from .any_network import switch_norms
from .sites import NormSite, norm_sites
from .ws import fold_ws

__all__ = ['NormSite', 'fold_ws', 'norm_sites', 'switch_norms']
