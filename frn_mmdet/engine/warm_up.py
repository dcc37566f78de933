"""The paper's warm-up: a cosine from 0 up to the learning rate."""

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
