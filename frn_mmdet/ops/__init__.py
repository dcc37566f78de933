"""The FRN operation: its definition, its kernels and the choice of one."""

from .frn import frn

__all__ = ['frn']
