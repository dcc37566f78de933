"""What this package takes of PyTorch that PyTorch does not promise to keep.

All of it, so that a new release is looked at in one place: each name has a
test in ``tests/test_torch_private.py`` that says what to do when it goes.
"""

import torch
from torch.autograd import forward_ad
from torch.nn.modules.dropout import _DropoutNd as Dropout
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
)

__all__ = [
    'Dropout', 'TorchDispatchMode', 'below_autograd', 'current_raw_stream',
    'forward_mode_is_active', 'functorch_is_active', 'has_kernel',
    'without_modes'
]

# A context in which operators are called without their autograd.
below_autograd = torch._C._AutoDispatchBelowAutograd
# Whether torch.func transforms what is being called.
functorch_is_active = torch._C._are_functorch_transforms_active
# has_kernel('namespace::operator', 'CPU')
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
# Of a device's number: its stream as an integer; None in a build without CUDA.
current_raw_stream = getattr(torch._C, '_cuda_getCurrentRawStream', None)
# A context in which no TorchDispatchMode sees the operators.
without_modes = _disable_current_modes


def forward_mode_is_active() -> bool:
    """Whether forward-mode AD is going on."""
    return forward_ad._current_level >= 0
