"""FRN and TLU as operations: definition, kernels, the choice of one."""

from .frn import frn
from .kernel import kernel_for, use_kernel
from .tlu import tlu

__all__ = ['frn', 'kernel_for', 'tlu', 'use_kernel']
