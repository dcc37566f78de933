"""A copy of a model for one run, that takes little memory and time.

What such a run shows does not depend on the weights. So all parameters of the
copy are zeros, in one piece of memory that is as long as the longest, and
what is multiplied by them is not computed: it gives 0. All else is computed,
so that code that looks at values finds what it expects. The weights of a
model that has just been built might not even make sense: Sparse R-CNN's boxes
would have negative sizes.
"""

import copy
from collections import ChainMap, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..torch_private import TorchDispatchMode

CONVOLUTION = torch.ops.aten.convolution.default
ADDMM = torch.ops.aten.addmm.default
MM = torch.ops.aten.mm.default


class Zeros:
    """Zeros that share their memory.

    Args:
        tensors (Iterable[Tensor]): What to give zeros for. Where one
            is on the meta device, its zeros are on the CPU.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        lengths = defaultdict(int)
        for x in tensors:
            lengths[self._kind(x)] = max(lengths[self._kind(x)], x.numel())
        self._of_kind = {
            (device, dtype): torch.zeros(length, device=device, dtype=dtype)
            for (device, dtype), length in lengths.items()}
        self._addresses = {x.data_ptr() for x in self._of_kind.values()}
        self._addresses.discard(0)  # of an empty one

    def like(self, x: Tensor) -> Tensor:
        """Zeros of a tensor's shape, type and device."""
        return self._of_kind[self._kind(x)][:x.numel()].view(x.shape)

    def __contains__(self, x: Any) -> bool:
        return type(x) in (Tensor, nn.Parameter) and (
            x.layout is torch.strided
            and x.untyped_storage().data_ptr() in self._addresses)

    @staticmethod
    def _kind(x: Tensor) -> tuple:
        return torch.device('cpu') if x.is_meta else x.device, x.dtype


class NoProducts(TorchDispatchMode):
    """Gives zeros for convolutions by zeros, and for products with them.

    Args:
        zeros (Zeros): The weights.
    """

    def __init__(self, zeros: Zeros) -> None:
        super().__init__()
        self.zeros = zeros

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (CONVOLUTION, ADDMM, MM):
            x, shape = self._shape(func, *args)
            if shape is not None:
                return x.new_zeros(shape)
        return func(*args, **kwargs or {})

    def _shape(self, func, *args) -> tuple[Tensor, list[int] | None]:
        """What is multiplied, and the product's shape; None: compute it.

        So where the bias is not 0, or where it does not fit: PyTorch has the
        words for that.
        """
        if func is CONVOLUTION:
            x, weight, bias, *geometry = args
            shape_of = _convolved
        else:
            (bias, x, weight), geometry = (None, *args)[-3:], ()
            shape_of = _multiplied
        fits = weight in self.zeros and x.dtype is weight.dtype and (
            bias is None or bias in self.zeros)
        return x, shape_of(x, weight, *geometry) if fits else None


def _convolved(x: Tensor, weight: Tensor, stride: list[int],
               padding: list[int], dilation: list[int], transposed: bool,
               output_padding: list[int], groups: int) -> list[int] | None:
    inputs, outputs = weight.shape[:2] if transposed else weight.shape[1::-1]
    inputs, outputs = ((inputs, outputs * groups) if transposed else
                       (inputs * groups, outputs))
    if x.dim() != weight.dim() or x.shape[1] != inputs:
        return None
    shape = [len(x), outputs]
    for i, (size, kernel) in enumerate(
            zip(x.shape[2:], weight.shape[2:], strict=True)):
        step, pad, gap, more = (values[i % len(values)] for values in (
            stride, padding, dilation, output_padding))
        reach = gap * (kernel - 1) + 1
        shape.append((size - 1) * step - 2 * pad + reach + more if transposed
                     else (size + 2 * pad - reach) // step + 1)
    return shape if min(shape[1:]) > 0 else None


def _multiplied(x: Tensor, weight: Tensor) -> list[int] | None:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[0]:
        return None
    return [len(x), weight.shape[1]]


def light_copy(model: nn.Module) -> tuple[nn.Module, Zeros]:
    """Copy a model, but for the values of its parameters.

    Args:
        model (nn.Module): Any; it may be on the meta device.

    Returns:
        tuple: The copy, none of whose modules is the model's, and the zeros
        that its parameters are. What was on the meta device is on the CPU.
    """
    parameters = [p for p in model.parameters() if not is_lazy(p)]
    zeros = Zeros(parameters)
    memo = {id(p): nn.Parameter(zeros.like(p), p.requires_grad)
            for p in parameters}
    with _OffMeta():
        try:
            copied = copy.deepcopy(model, dict(memo))
        except Exception:  # any: what a module has is code of a user's
            copied = None
        if copied is None or not set(model.modules()).isdisjoint(
                copied.modules()):
            copied = _copy_each(model, memo)
    return copied, zeros


class _OffMeta(TorchDispatchMode):
    """Lets a copy of what is on the meta device be zeros on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.clone.default and args[0].is_meta:
            return torch.zeros_like(args[0], device='cpu')
        return func(*args, **kwargs or {})


def _copy_each(model: nn.Module, memo: dict) -> nn.Module:
    """The same, where something cannot be copied, or will not be."""
    copies = {id(module): type(module).__new__(type(module))
              for module in model.modules()
              if not isinstance(module, torch.jit.ScriptModule)}
    memo |= copies
    for module in model.modules():
        if id(module) in copies:
            vars(copies[id(module)]).update(
                {name: _copy_value(value, memo)
                 for name, value in vars(module).items()})
    return copies[id(model)]


def _copy_value(value: Any, memo: dict) -> Any:
    """A copy as far as there can be one; a lock, say, is shared."""
    new = ChainMap({}, memo)
    try:
        copied = copy.deepcopy(value, new)
        memo |= new.maps[0]
        return copied
    except Exception:  # any: see above
        if isinstance(value, Tensor):  # one that was computed
            copied = value.detach().clone()
        elif isinstance(value, dict):
            copied = copy.copy(value)
            copied |= {key: _copy_value(item, memo)
                       for key, item in value.items()}
        elif type(value) in (list, tuple):
            copied = type(value)(_copy_value(item, memo) for item in value)
        else:
            copied = value
        return memo.setdefault(id(value), copied)
