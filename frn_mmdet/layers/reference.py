"""Reference statistics: what lets a norm go on from a BatchNorm's."""

import torch
from torch import Tensor

from ..ops.definition import compute_dtype
from .arguments import check, is_number

REFERENCE = ('ref_mean', 'ref_var', 'ref_share')


class Reference:
    r"""Mixin of a norm of PyTorch that may start from a BatchNorm.

    Two fixed numbers a channel, the reference statistics, standardize the
    map, and those that the norm itself takes, m and v, of some elements of
    the standardized map, are a share of what it is normalised by::

        x_ref = (x - ref_mean) / sqrt(ref_var)
        y = weight * (x_ref - share * m)
            / sqrt(share * (v + eps) + 1 - share) + bias

    Taken from a BatchNorm, they let a network that was trained with it go on
    with another norm: for a share of 0 this is BN in test mode, for 1 it is
    the norm of the standardized map. It looks at nothing but what the norm
    looks at.

    A subclass calls :meth:`init_reference` at the end of its ``__init__``,
    and in ``forward`` asks :attr:`has_reference`.

    Attributes:
        share (float): Of the norm's own statistics, 1 without a reference.
            A number, since to read the buffer in each call would wait for
            the GPU. It is read when a state dict is loaded, and by
            ``train()`` and ``eval()``.
        has_reference (bool): Whether there is a reference that changes
            something; read like the share. One of mean 0, variance 1 and a
            share of 1 does not.
    """

    share = 1.
    has_reference = False

    def init_reference(self, share: float | None) -> None:
        """Register the buffers; a share of None leaves them empty.

        Raises:
            ConfigError: If ``share`` is no number from 0 to 1.
        """
        for name in REFERENCE:
            self.register_buffer(name, None)
        if share is not None:
            self.add_reference(share)

    def add_reference(self, share: float) -> None:
        """Give the layer reference statistics, of mean 0 and variance 1.

        Raises:
            ConfigError: If ``share`` is no number from 0 to 1.
        """
        check(type(self).__name__, 'share', share,
              is_number(share) and 0 <= share <= 1, 'a number from 0 to 1')
        like = torch.zeros(_channels(self)) if self.weight is None else (
            self.weight.detach())
        # Of the buffer's precision, so that a loaded layer equals the saved.
        self.share = float(
            torch.tensor(share, dtype=like.dtype, device='cpu'))
        self.ref_mean = torch.zeros_like(like)
        self.ref_var = torch.ones_like(like)
        self.ref_share = like.new_tensor(self.share)
        self.has_reference = True  # until somebody looks

    def fresh_statistics(
            self, device: torch.device | None = None) -> dict[str, Tensor]:
        """The reference statistics that change nothing."""
        return dict(
            ref_mean=torch.zeros(_channels(self), device=device),
            ref_var=torch.ones(_channels(self), device=device),
            ref_share=torch.ones((), device=device))

    def state_from_bn(self, mean: Tensor, var: Tensor,
                      share: float) -> dict[str, Tensor]:
        """The state, but gamma and beta, that goes on from a BN's.

        Args:
            mean (Tensor): (C,), what the BN subtracts in test mode.
            var (Tensor): (C,), what it divides by the root of, its eps
                included.
            share (float): See the class.
        """
        dtype = compute_dtype(mean)
        return dict(ref_mean=mean.to(dtype), ref_var=var.to(dtype),
                    ref_share=torch.tensor(share, device=mean.device))

    def reset_parameters(self) -> None:
        """Set the initial values (also after building on ``meta``)."""
        super().reset_parameters()
        # PyTorch's __init__ calls this before the buffers are there.
        if self._buffers.get('ref_mean') is not None:
            self.ref_mean.zero_()
            self.ref_var.fill_(1.)
            self.ref_share.fill_(self.share)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args,
                              **kwargs) -> None:
        """Have reference statistics or not, as the state dict has.

        They stay in place, and change nothing, where it has none: others
        may hold a list of the buffers (mmengine's EMA does).
        """
        _read_old(state_dict, prefix)
        if f'{prefix}ref_mean' in state_dict:
            if self.ref_mean is None:
                self.add_reference(1.)
        elif self.ref_mean is not None and f'{prefix}weight' in state_dict:
            neutral = self.fresh_statistics(
                state_dict[f'{prefix}weight'].device)
            state_dict.update(
                {f'{prefix}{key}': value for key, value in neutral.items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._read_reference()

    def train(self, mode: bool = True) -> 'Reference':
        """As ``nn.Module.train``; whoever averages weights writes buffers."""
        self._read_reference()
        return super().train(mode)

    def _read_reference(self) -> None:
        # Neither on the meta device nor in a fake run is there a value.
        if type(self.ref_share) is not Tensor or self.ref_share.is_meta:
            return
        self.share = float(self.ref_share)
        self.has_reference = self.share != 1 or not bool(
            (self.ref_mean == 0).all() and (self.ref_var == 1).all())

    def extra_repr(self) -> str:
        """The arguments, for ``print(model)``."""
        text = super().extra_repr()
        return text if self.ref_mean is None else (
            f'{text}, share={self.share:g}')


def _channels(norm: Reference) -> int:
    return getattr(norm, 'num_channels', None) or norm.num_features


def _read_old(state_dict: dict, prefix: str) -> None:
    """Replace, in place, what older state dicts have for the share.

    ``ref_eps``, the a of ``share = 1 / (1 + a)``. It was infinite where the
    share is 0, and there an average (mmengine's EMA) made it NaN.
    """
    a = state_dict.pop(f'{prefix}ref_eps', None)
    if a is not None:
        state_dict[f'{prefix}ref_share'] = (1 / (1 + a)).nan_to_num(0.)
