import pytest
import torch

from frn_mmdet.ops import frn, use_kernel

GPU = torch.cuda.is_available()


class Interpreted(torch.autograd.Function):
    """The Triton kernels on a CPU, where no operator leads to them."""

    @staticmethod
    def forward(ctx, x, weight, bias, tau, eps_tensor, *others):
        from frn_mmdet.ops import cuda
        y, inv = cuda.forward(x, weight, bias, tau, eps_tensor, *others)
        ctx.save_for_backward(x, inv, weight, bias, tau, eps_tensor)
        ctx.others = others
        return y

    @staticmethod
    def backward(ctx, grad):
        from frn_mmdet.ops import cuda
        dx, *of_parameters = cuda.backward(grad, *ctx.saved_tensors,
                                           *ctx.others)
        parameters = ctx.saved_tensors[2:]
        if parameters[3] is not None and parameters[3].numel() == 1:
            of_parameters[3] = of_parameters[3].sum().view(1)
        return dx, *(None if p is None else g.to(p.dtype) for g, p in zip(
            of_parameters, parameters, strict=True)), *[None] * 3


def interpreted(x, weight, bias, tau=None, eps=1e-6, mean=None, var=None,
                share=1.):
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
