"""Tell an eps that a config gives from the one that mmcv slips in."""

import sys

from torch import nn


def eps_was_given(layer: nn.Module) -> bool:
    """Whether the eps that ``layer`` is being built with was asked for.

    ``build_norm_layer`` (mmcv and mmpretrain) fills in ``eps=1e-5`` when the
    config has none, so a layer with another default never gets it. The value
    alone cannot tell: a config may ask for 1e-5. The config itself can, and
    it is a local variable of the caller.

    Args:
        layer (nn.Module): The layer whose ``__init__`` is running.

    Returns:
        bool: False if the caller is ``build_norm_layer`` with a config that
        has no ``eps``; True otherwise.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_locals.get('self') is layer:
        frame = frame.f_back  # __init__ of the layer and of its subclasses
    if frame is None or frame.f_code.co_name != 'build_norm_layer':
        return True
    return 'eps' in frame.f_locals.get('cfg', ())
