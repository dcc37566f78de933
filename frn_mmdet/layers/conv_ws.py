"""A convolution with standardized weights."""

import copy
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.definition import exported
from ..ops.kernel import by_definition
from ..ops.standardize import standardize
from ..registry import MODELS

EPS = 1e-5  # mmcv's
# Attributes that nn.Conv2d has not.
OWN = ('eps', '_kept', '_is_shared', '_calls')


class _Kept(NamedTuple):
    """A standardized weight, and of what it is."""

    weight: Tensor
    version: int
    address: int
    standardized: Tensor

    def is_of(self, weight: Tensor, learns: bool) -> bool:
        """Whether the weight is the same, as it was."""
        return (self.weight is weight and self.version == weight._version
                and self.standardized.requires_grad == learns
                and self.address == weight.data_ptr()
                and self.standardized.dtype == weight.dtype
                and self.standardized.device == weight.device)


@MODELS.register_module(name='ConvWS')
class ConvWS(nn.Conv2d):
    r"""``nn.Conv2d`` of ``(w - mean) / (std + eps)``, filter by filter.

    Weight standardization (Qiao et al. 2019), with the parameters and values
    of mmcv's ``ConvWS``, which has that name in the root registry. It takes
    the common part out of the filters, as a centred norm takes it out of the
    map, but looks at neither the batch nor the image.

    The standardized weight is computed once, and again when the weight has
    changed. In training that is once a step, however many levels of a
    pyramid share the layer; a backward pass ends it. A layer that a step
    calls once keeps nothing for backward but its weight (under autocast the
    cast of the standardized one), from which that is computed again there.
    Not seen is a change by way of ``.data``, which PyTorch itself does not
    count, between two calls without a backward pass, or a call and its
    backward pass; ``train()`` and ``eval()`` forget what was kept.

    Args:
        *args: Those of ``nn.Conv2d``, also by keyword.
        eps (float): Added to the deviation. Defaults to 1e-5.

    Raises:
        ValueError: If a filter has one element, whose deviation is 0 / 0.
    """

    def __init__(self, *args: Any, eps: float = EPS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.weight[0].numel() < 2:
            raise ValueError(
                f'ConvWS of {self.in_channels} channels in {self.groups} '
                'groups has filters of one element, which have no deviation')
        self.eps = eps
        self._kept: _Kept | None = None
        self._is_shared = False  # called several times in a step
        self._calls = 0  # in this step

    @classmethod
    def like(cls, conv: nn.Conv2d) -> 'ConvWS':
        """A convolution as ``conv``, with the same parameters and hooks.

        Raises:
            ValueError: See the class.
        """
        with torch.device('meta'):
            new = cls(conv.in_channels, conv.out_channels, conv.kernel_size,
                      groups=conv.groups, eps=getattr(conv, 'eps', EPS))
        new.__dict__.update(_without(conv, *OWN))
        return new

    def folded(self) -> nn.Conv2d:
        """A plain convolution that gives the same, with the same hooks."""
        conv = nn.Conv2d.__new__(nn.Conv2d)
        conv.__dict__.update(_without(self, *OWN))
        conv.weight = nn.Parameter(
            standardize(self.weight, self.eps).detach(),
            self.weight.requires_grad)
        return conv

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        weight = self.weight  # once: a parametrization may be random
        if not self._is_called_once(weight, x):
            return self._conv_forward(x, self._standardized(weight), self.bias)
        self._keep(None)
        standardized = self._fresh(weight, learns=True)
        with _computed_again(standardized, weight, self.eps):
            return self._conv_forward(x, standardized, self.bias)

    def standardized(self) -> Tensor:
        """The weight that convolves, shape of ``weight``."""
        return self._standardized(self.weight)

    def _standardized(self, weight: Tensor) -> Tensor:
        learns = _learns(weight)
        if exported() and not self.training and self._kept is not None:
            return self._kept.standardized  # a constant of what is exported
        if _is_untold(weight) or learns and _is_recomputed():
            return standardize(weight, self.eps)
        if self._kept is None or not self._kept.is_of(weight, learns):
            self._keep(_Kept(weight, weight._version, weight.data_ptr(),
                             self._fresh(weight, learns)))
        return self._kept.standardized

    def _is_called_once(self, weight: Tensor, x: Tensor) -> bool:
        """Note a call; whether it is taken for the only one in its step.

        A layer that was called twice in a step is taken for one that several
        levels of a pyramid share, until a step calls it once: what is
        computed for one of them is kept for the others.
        """
        if not _learns(weight) or _is_untold(weight) or _is_recomputed() or (
                type(x) is not Tensor) or not (
                    torch._C._autograd._saved_tensors_hooks_is_enabled()):
            return False
        calls = self._calls + 1
        vars(self).update(_is_shared=self._is_shared or calls > 1,
                          _calls=calls)
        return not self._is_shared

    def _fresh(self, weight: Tensor, learns: bool) -> Tensor:
        standardized = standardize(weight, self.eps)
        if learns:  # its graph is for one backward pass
            standardized.register_hook(self._forget)
        return standardized

    def _forget(self, grad: Tensor) -> None:
        self._keep(None)
        if self._calls:  # the first time in this backward pass
            vars(self).update(_is_shared=self._calls > 1, _calls=0)

    def _keep(self, kept: _Kept | None) -> None:
        # The way of nn.Module would take 20 us each time in a large model,
        # where the convolutions have emptied the processor's caches.
        vars(self)['_kept'] = kept

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a bias where there was none, as ``fuse_conv_bn`` gives.

        Raises:
            RuntimeError: Since the scaled weight would be standardized.
        """
        if name == 'bias' and isinstance(value, nn.Parameter) and (
                self._parameters.get(name, value) is None):
            raise RuntimeError(
                'a norm cannot be folded into a convolution with standardized '
                'weights; call frn_mmdet.fold_ws(model) before fuse_conv_bn')
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> 'ConvWS':
        """As ``nn.Module.train``; what was kept is forgotten."""
        self._keep(None)
        self._calls = 0
        return super().train(mode)

    def __getstate__(self) -> dict:
        return dict(vars(self), _kept=None, _calls=0)

    def extra_repr(self) -> str:
        """The arguments, for ``print(model)``."""
        return f'{super().extra_repr()}, ws=True'


def _computed_again(standardized: Tensor, weight: Tensor,
                    eps: float) -> AbstractContextManager:
    """Let a convolution keep nothing for its standardized weight.

    Raises:
        RuntimeError: In backward, if its input or weight was changed in place
            meanwhile; what went through hooks PyTorch does not look at.
    """
    address, version = standardized.data_ptr(), weight._version

    def pack(tensor: Tensor) -> tuple[Tensor, int] | None:
        if tensor.data_ptr() == address:
            return None
        return tensor, tensor._version

    def unpack(kept: tuple[Tensor, int] | None) -> Tensor:
        tensor, then = kept or (weight, version)
        if tensor._version != then:
            raise RuntimeError(
                'one of the variables needed for gradient computation has '
                'been modified by an inplace operation: the '
                f'{"input" if kept else "weight"} of a ConvWS')
        if kept:
            return tensor
        with torch.no_grad():
            return standardize(weight, eps)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _learns(weight: Tensor) -> bool:
    return torch.is_grad_enabled() and weight.requires_grad


def _is_untold(weight: Tensor) -> bool:
    """Whether changes of a weight go uncounted, or it has no numbers here."""
    return (by_definition() or torch.compiler.is_compiling()
            or weight.is_inference() or weight.is_meta
            or type(weight) not in (Tensor, nn.Parameter))  # a DTensor, say


def _is_recomputed() -> bool:
    """Whether what is kept for backward may be computed again there.

    Activation checkpointing counts what a forward pass keeps, and both of
    its passes have to keep the same. There is no public question for it.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(
        True) is not None or torch._C._current_graph_task_id() != -1


def _without(module: nn.Module, *names: str) -> dict[str, Any]:
    """The attributes of a module, those that are dicts copied."""
    return {key: copy.copy(value) if isinstance(value, dict) else value
            for key, value in vars(module).items() if key not in names}
