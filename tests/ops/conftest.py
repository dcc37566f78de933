import pytest
import torch

from frn_mmdet.ops import frn, library, use_kernel

GPU = torch.cuda.is_available()


class Interpreted(torch.autograd.Function):
    """The Triton kernels on a CPU, where no operator leads to them."""

    @staticmethod
    def forward(ctx, *inputs):
        from frn_mmdet.ops import cuda
        y, inv = cuda.forward(*inputs)
        library.keep(ctx, inputs, inv)
        return y

    @staticmethod
    def backward(ctx, grad):
        from frn_mmdet.ops import cuda
        twice = torch.is_grad_enabled()
        return library.gradients(
            ctx, grad,
            torch.ops.frn_mmdet.frn_backward if twice else cuda.backward)


def interpreted(x, weight, bias, tau=None, eps=1e-6, mean=None, var=None,
                share=1.):
    """``frn`` on the interpreter."""
    if isinstance(eps, torch.Tensor):
        eps, var = 1., eps if var is None else eps * var
    return Interpreted.apply(x, weight, bias, tau, var, eps, mean, share)


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
