"""FRN and TLU as operations: definition, kernels, the choice of one."""

from .frn_function import frn
from .kernel import kernel_for, use_kernel
from .tlu_function import tlu

__all__ = ['frn', 'kernel_for', 'tlu', 'use_kernel']
