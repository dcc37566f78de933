"""The paper's schedule: a cosine up from 0, and a cosine down to 0."""

import math

from mmengine.optim import LinearLR

from ..registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class CosineWarmupLR(LinearLR):
    """Raise the learning rate from 0 along a cosine.

    mmengine's ``OneCycleLR`` does, too, but up to a number, which stays when
    ``auto_scale_lr`` fits the learning rate to the batch. This one ends at
    the optimizer's, and any decay goes on from there.

    Args:
        optimizer (Optimizer or OptimWrapper): Whose learning rate it is.
        end (int): Step or epoch at which the rate is reached.
        **kwargs: ``begin``, ``by_epoch`` and the like, of mmengine's
            schedulers.
    """

    def __init__(self, optimizer: object, end: int, **kwargs) -> None:
        super().__init__(optimizer, end=end, **kwargs)

    def _get_value(self) -> list[float]:
        part = self.last_step / max(self.total_iters, 1)
        factor = (1 - math.cos(math.pi * part)) / 2
        return [base * factor for base in self.base_values]


@PARAM_SCHEDULERS.register_module()
class CosineLR(LinearLR):
    """Raise the learning rate from 0 along a cosine, and lower it likewise.

    Section 4.2 of the paper. The whole of it, so that a config has to name
    neither its steps nor its learning rate again: both are the runner's and
    the optimizer's.

    Args:
        optimizer (Optimizer or OptimWrapper): Whose learning rate it is.
        warm_up (float): Share of the steps that the rate rises in, from 0 to
            1 (without 1).
        **kwargs: ``by_epoch`` and the like, of mmengine's schedulers; ``end``
            is the training's unless it is given.
    """

    def __init__(self, optimizer: object, warm_up: float, **kwargs) -> None:
        self.warm_up = warm_up
        super().__init__(optimizer, **kwargs)

    def _get_value(self) -> list[float]:
        steps = self.end - self.begin
        top, last = max(self.warm_up * steps - 1, 0), steps - 1
        if self.last_step < top:
            part = self.last_step / top
        else:
            part = (last - self.last_step) / max(last - top, 1)
        factor = (1 - math.cos(math.pi * part)) / 2
        return [base * factor for base in self.base_values]
