"""Batch Renormalization."""

import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.module_tracker import ModuleTracker

from ..ops.check import check_dtype
from ..ops.definition import compute_dtype, spatial_dims
from ..registry import MODELS
from .arguments import check, check_count, check_eps, is_number
from .fx import Proxy, one_call

TRACKER = ModuleTracker()  # never entered: it is asked for the present pass


@ROOT_MODELS.register_module()
@MODELS.register_module()
class BRN(_BatchNorm):
    r"""Batch Renormalization (Ioffe, NeurIPS 2017, algorithm 1).

    In training the batch's statistics normalise, as in BN, and a correction
    brings the result to what the running statistics would give::

        r = clip(sigma_batch / sigma_running, 1 / r_max, r_max)
        d = clip((mu_batch - mu_running) / sigma_running, -d_max, d_max)
        y = weight * ((x - mu_batch) / sigma_batch * r + d) + bias

    No gradient goes through r and d. In test the running statistics
    normalise. The limits grow with the steps seen, from r_max 1 and d_max 0,
    which is BN: constant during ``warmup_steps``, then linear until
    ``r_steps`` and ``d_steps`` (section 4.1). The step is the buffer
    ``num_batches_tracked``, so a resumed run goes on where it stopped.

    The base class is BN's, since in test the two are one: ``norm_eval``
    freezes it and BN folding folds it.

    A step counts once under activation checkpointing, too, which calls the
    layer again in the backward pass: there r and d are those of the first
    call (of several in a step, each with its batch, nearly those), and the
    running statistics stay. Code that torch.compile made cannot ask in which
    pass it is: called by a checkpoint, not around one, it counts twice.

    Args:
        num_features (int): Channels C.
        eps (float): Added to the variance. Defaults to 1e-5.
        momentum (float): Weight of a batch in the running statistics, over 0
            and at most 1. Defaults to 0.01 (section 4.1).
        r_max (float): Final limit of r, 1 or more. Defaults to 3.
        d_max (float): Final limit of d, 0 or more. Defaults to 5.
        warmup_steps (int): Steps as BN. Defaults to 5000.
        r_steps (int): Step from which on r_max holds. Defaults to 40000.
        d_steps (int): Step from which on d_max holds. Defaults to 25000.
        device (torch.device, optional): Of the parameters and buffers.
        dtype (torch.dtype, optional): Likewise.

    Shape:
        (N, C, \*spatial), any float dtype; statistics are float32 for half
        types. Any size may be 0, which changes no statistics.

    Raises:
        ConfigError: If an argument is out of its range.
    """

    _abbr_ = 'brn'

    def __init__(self,
                 num_features: int,
                 eps: float = 1e-5,
                 momentum: float = 0.01,
                 r_max: float = 3.,
                 d_max: float = 5.,
                 warmup_steps: int = 5000,
                 r_steps: int = 40000,
                 d_steps: int = 25000,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        check_count('BRN', 'num_features', num_features)
        check_eps('BRN', eps)
        check('BRN', 'momentum', momentum,
              is_number(momentum) and 0 < momentum <= 1,
              'a number over 0, at most 1')
        for name, value, least, range_ in (
                ('r_max', r_max, 1, '1'), ('d_max', d_max, 0, '0'),
                ('warmup_steps', warmup_steps, 0, '0'),
                ('r_steps', r_steps, warmup_steps,
                 f'warmup_steps ({warmup_steps})'),
                ('d_steps', d_steps, warmup_steps,
                 f'warmup_steps ({warmup_steps})')):
            check('BRN', name, value, is_number(value) and value >= least,
                  f'a finite number, {range_} or more')
        super().__init__(num_features, eps=eps, momentum=momentum,
                         device=device, dtype=dtype)
        self.r_max = r_max
        self.d_max = d_max
        self.warmup_steps = warmup_steps
        self.r_steps = r_steps
        self.d_steps = d_steps

    def state_from_bn(self, mean: Tensor, var: Tensor,
                      share: None = None) -> dict[str, Tensor]:
        """The state, but gamma and beta, that goes on from a BN's.

        Args:
            mean (Tensor): (C,), what the BN subtracts in test mode.
            var (Tensor): (C,), what it divides by the root of, its eps
                included.
            share (None): There is none, as FRN has it.
        """
        # The limits of r and d are for statistics that have to settle first.
        return dict(
            running_mean=mean,
            running_var=(var - self.eps).clamp(min=0),
            num_batches_tracked=torch.tensor(
                max(self.r_steps, self.d_steps), device=mean.device))

    def fresh_statistics(
            self, device: torch.device | None = None) -> dict[str, Tensor]:
        """The statistics of a layer that has seen nothing."""
        return dict(
            running_mean=torch.zeros(self.num_features, device=device),
            running_var=torch.ones(self.num_features, device=device),
            num_batches_tracked=torch.tensor(0, device=device))

    def limits(self) -> tuple[float, float]:
        """The limits of r and d at the present step."""
        r_max, d_max = self._limits(self.num_batches_tracked)
        return float(r_max), float(d_max)

    def _limits(self, step: Tensor) -> tuple[Tensor, Tensor]:
        # Tensors, since to read the buffer would wait for the GPU.
        step = step.to(compute_dtype(self.running_mean))
        return (1 + (self.r_max - 1) * self._progress(step, self.r_steps),
                self.d_max * self._progress(step, self.d_steps))

    def _progress(self, step: Tensor, end: int) -> Tensor:
        """0 during the warm-up, 1 from ``end`` on, linear between."""
        if end == self.warmup_steps:
            return (step >= end).to(step)
        return ((step - self.warmup_steps) / (end - self.warmup_steps)).clamp(
            0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training also update the running statistics."""
        if isinstance(x, Proxy):
            return one_call(self, x)
        self._check_input_dim(x)
        if not self.training or x.numel() == 0:
            return torch.batch_norm(x, self.weight, self.bias,
                                    self.running_mean, self.running_var,
                                    False, 0., self.eps, _cudnn())
        r, d = self._correct_and_track(x)
        # With r and d in gamma and beta, BN's own kernel does the rest.
        return torch.batch_norm(x, self.weight * r,
                                self.weight * d + self.bias, None, None, True,
                                0., self.eps, _cudnn())

    @torch.no_grad()
    def _correct_and_track(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """R and d of a batch, shape (C,) each, by the statistics before it."""
        x = x.to(compute_dtype(x))
        var, mean = torch.var_mean(x, (0, *spatial_dims(x)), correction=0)
        count = x.numel() // x.shape[1]
        unbiased = var * (count / max(count - 1, 1))  # as nn.BatchNorm
        running = self.running_mean, self.running_var
        batch = mean.to(running[0]), unbiased.to(running[1])
        if _is_computed_again():
            return self._correction(
                mean, var, *self._before(*batch), self.num_batches_tracked - 1)
        r_and_d = self._correction(
            mean, var, *running, self.num_batches_tracked)
        for statistics, new in zip(running, batch, strict=True):
            statistics.lerp_(new, self.momentum)
        self.num_batches_tracked += 1
        return r_and_d

    def _correction(self, mean: Tensor, var: Tensor, running_mean: Tensor,
                    running_var: Tensor, step: Tensor
                    ) -> tuple[Tensor, Tensor]:
        r_max, d_max = self._limits(step)
        running_std = (running_var + self.eps).sqrt()
        r = ((var + self.eps).sqrt() / running_std).clamp(1 / r_max, r_max)
        d = ((mean - running_mean) / running_std).clamp(-d_max, d_max)
        return r.to(self.weight), d.to(self.weight)

    def _before(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The running statistics before a batch was the last to change them.

        With a momentum of 1 they are the batch's, and nothing else is left.
        """
        back = -self.momentum / (1 - self.momentum or 1)
        return (self.running_mean.lerp(mean, back),
                self.running_var.lerp(var, back).clamp(min=0))

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 3 or x.shape[1] != self.num_features:
            raise ValueError(
                f'BRN of {self.num_features} channels takes (N, '
                f'{self.num_features}, *spatial), got shape {tuple(x.shape)}')
        check_dtype('BRN input', x)

    def extra_repr(self) -> str:
        """The arguments, for ``print(model)``."""
        return (f'{super().extra_repr()}, r_max={self.r_max}, '
                f'd_max={self.d_max}, warmup_steps={self.warmup_steps}, '
                f'r_steps={self.r_steps}, d_steps={self.d_steps}')


def _cudnn() -> bool:
    return torch.backends.cudnn.enabled


def _is_computed_again() -> bool:
    """Whether a backward pass calls, as activation checkpointing does."""
    return not torch.compiler.is_compiling() and TRACKER.is_bw
