"""Half precision where it is safe."""

from torch import nn

from ..switch.sites import norms_of


def halve(model: nn.Module) -> nn.Module:
    """Give a model float16 weights, but for its norms, in place.

    A norm squares, and the square of 256 is more than float16 holds: so
    every norm computes in float32, and keeps what it has in it. A variance
    of BN may be infinite in float16, and an eps 0.

    Args:
        model (nn.Module): It takes float16 then, and gives it.

    Returns:
        nn.Module: The model.
    """
    norms = [norm for _, norm in norms_of(model)]
    kept = {id(value) for norm in norms
            for value in (*norm.parameters(), *norm.buffers())}
    for value in (*model.parameters(), *model.buffers()):
        if id(value) not in kept and value.is_floating_point():
            value.data = value.data.half()
    for norm in norms:
        norm.register_forward_pre_hook(
            lambda _, args: tuple(x.float() for x in args))
        norm.register_forward_hook(lambda _, args, y: y.half())
    return model
