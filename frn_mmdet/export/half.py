"""Half precision where it is safe."""

from torch import nn

from ..switch.sites import norms_of


def halve(model: nn.Module) -> nn.Module:
    """Give a model float16 weights, but for its norms, in place.

    A norm squares, and the square of 256 is more than float16 holds: so
    every norm computes in float32, and has its parameters in it.

    Args:
        model (nn.Module): It takes float16 then, and gives it.

    Returns:
        nn.Module: The model.
    """
    model.half()
    for _, norm in norms_of(model):
        norm.float()
        norm.register_forward_pre_hook(
            lambda _, args: tuple(x.float() for x in args))
        norm.register_forward_hook(lambda _, args, y: y.half())
    return model
