import pytest
import torch

from frn_mmdet.ops import frn, library, use_kernel

GPU = torch.cuda.is_available()
OPS = torch.ops.frn_mmdet


def interpreted(x, weight, bias, tau=None, eps=1e-6, mean=None, var=None,
                share=1.):
    """The Triton kernels on a CPU, where no operator leads to them."""
    if isinstance(eps, torch.Tensor):
        eps, var = 1., eps if var is None else eps * var
    return library.Frn.apply(x, weight, bias, tau, var, eps, mean, share)[0]


def _on_interpreter(operator, *inputs):
    from frn_mmdet.ops import cuda
    kernels = {OPS.frn: cuda.forward, OPS.frn_backward: cuda.backward}
    return kernels[operator](*inputs)


@pytest.fixture(params=['plain', 'cpp', 'triton'])
def kernel(request, monkeypatch):
    """``frn`` on each kernel; Triton's on the GPU or on its interpreter.

    Inside, tensors are made on the kernel's device.
    """
    if request.param != 'triton':
        with use_kernel('plain' if request.param == 'plain' else 'native'):
            yield frn
    elif GPU:
        with torch.device('cuda'), use_kernel('native'):
            yield frn
    else:
        monkeypatch.setattr(library, '_below', _on_interpreter)
        yield interpreted
