"""Let torch.fx take a layer of ours as one, as it takes torch's own."""

from torch import nn
from torch.fx import Proxy

__all__ = ['Proxy', 'one_call']


def one_call(layer: nn.Module, x: Proxy) -> Proxy:
    """Write a layer that is traced into the graph as one call.

    The tracers of torch.fx look into every layer that is not torch's own.
    What they wrote down there would stay what it was then, whatever mode the
    layer is in and whatever it loads: mmengine traces for
    ``efficient_conv_bn_eval`` before it loads a checkpoint.

    Args:
        layer (nn.Module): Called with one map, and asking for it in
            ``forward``: a decorator there would give all classes the same
            code object, whose recompilations torch.compile limits.
        x (Proxy): What the tracer has for the map.

    Returns:
        Proxy: For the result.
    """
    return x.tracer.create_proxy(
        'call_module', x.tracer.path_of_module(layer), (x, ), {})
