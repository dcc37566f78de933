"""The FRN operation: its definition, its kernels and the choice of one."""

from .frn import frn
from .kernel import kernel_for, use_kernel

__all__ = ['frn', 'kernel_for', 'use_kernel']
