import pytest
import torch

from frn_mmdet.ops import frn, use_kernel

GPU = torch.cuda.is_available()


def interpreted(x, weight, bias, tau=None, eps=1e-6, mean=None, var=None,
                share=1.):
    """The Triton kernels on a CPU, where no operator leads to them."""
    from frn_mmdet.ops import cuda
    if isinstance(eps, torch.Tensor):
        eps, var = 1., eps if var is None else eps * var
    return cuda.eager(x, weight, bias, tau, var, eps, mean, share)


@pytest.fixture(params=['plain', 'cpp', 'triton'])
def kernel(request):
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
        yield interpreted
