"""From a value of ``model.norm_cfg`` to the norms of a built detector."""

from .sites import NormSite, norm_sites

__all__ = ['NormSite', 'norm_sites']
