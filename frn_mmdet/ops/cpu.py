"""Loads the CPU kernel: ``cpu.cpp``, and ``host.cpp`` for its gradient."""

from mmengine.logging import print_log

from . import build


def load() -> str:
    """Register the CPU kernel, compiling it if need be.

    Returns:
        str: Why there is none; empty if all is well. It is also logged.
    """
    try:
        build.load('cpu', 'CPU')
        build.load('host', 'AutogradCPU')
        return ''
    # Whatever is wrong: plain PyTorch computes the same.
    except Exception as error:
        reason = str(error) or type(error).__name__
    print_log(f'FRN runs in plain PyTorch on the CPU: {reason}', 'current')
    return reason
