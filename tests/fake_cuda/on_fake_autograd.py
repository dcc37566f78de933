"""What PyTorch does with an operation, whoever launches its kernels.

There are no numbers here (those of the C++ nodes are tested on the CPU, which
has the same): what counts is that it runs, and which kernels are launched.
"""

import copy
import os

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from frn_mmdet import FRN, GN, TLU, use_kernel

FORWARD, BACKWARD = ['forward', 'tlu'], ['tlu_backward', 'tlu_join',
                                         'backward', 'join']


@pytest.fixture(params=['auto', 'python'])
def names(request, fake):
    """names(call): the kernels that it launches, on a side or the other."""
    def launched(call):
        call()  # compiles
        return [one.kernel for one in fake.launches(call)[1] if one.kernel]

    with use_kernel(request.param):
        yield launched


@pytest.fixture
def net():
    return nn.Sequential(FRN(4, tlu=True, learnable_eps=True),
                         TLU(4)).cuda()


@pytest.fixture
def x():
    return torch.empty(2, 4, 8, 8, device='cuda', requires_grad=True)


def test_a_step(names, net, x):
    assert names(lambda: net(x).sum().backward()) == FORWARD + BACKWARD
    assert all(p.grad.shape == p.shape for p in net.parameters())


def test_the_graph_is_kept(names, net, x):
    def twice():
        loss = net(x).sum()
        loss.backward(retain_graph=True)
        loss.backward()

    assert names(twice) == FORWARD + 2 * BACKWARD


def test_double_backward(names, net, x):
    def second():
        first, = torch.autograd.grad(net(x).square().sum(), x,
                                     create_graph=True)
        first.square().sum().backward()

    # The second comes of the definition, and goes through the first layer.
    assert names(second)[:6] == FORWARD + BACKWARD
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpointing(names, net, x, reentrant):
    step = names(lambda: checkpoint(
        net, x, use_reentrant=reentrant).sum().backward())
    assert step[:2] == FORWARD
    assert sorted(step) == sorted(2 * FORWARD + BACKWARD)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast(names, x, dtype):
    net = nn.Sequential(nn.Conv2d(4, 4, 1), FRN(4), TLU(4)).cuda()
    torch.backends.cudnn.enabled = False
    with torch.autocast('cuda', dtype=dtype):
        y = FRN(4).cuda()(x.to(dtype))
        z = TLU(4).cuda()(x.to(dtype))
    assert y.dtype == z.dtype == dtype
    assert names(lambda: net[1:](x.to(dtype)).sum().backward()) == (
        FORWARD + BACKWARD)
    assert net[2].tau.grad.dtype == torch.float32


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_without_gradients(names, net, x, mode):
    with mode():
        assert names(lambda: net(x)) == FORWARD
        assert not net(x).requires_grad


def test_torch_func(names, net, x):
    """It transforms PyTorch's own operators: no kernel of ours."""
    parameters = dict(net.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(net, parameters, (x, )).sum()

    assert names(lambda: torch.func.grad(loss)(parameters, x)) == []
    batch = x.detach()[None]
    assert names(lambda: torch.func.vmap(
        loss, in_dims=(None, 0))(parameters, batch)) == []
    assert names(lambda: torch.func.functional_call(
        net, parameters, (x, )).sum().backward()) == FORWARD + BACKWARD


def test_compiled(names, net, x):
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend='aot_eager')
    # The TLU is PyTorch's operators, for the compiler to fuse.
    assert names(lambda: compiled(x).sum().backward()) == [
        'forward', 'backward', 'join']
    compiled(x.detach()[:, :, :5])


def test_parts_are_frozen(names, net, x):
    net[0].requires_grad_(False)
    net(x.detach()).sum().backward()
    assert net[1].tau.grad is not None
    net[1].requires_grad_(False)
    assert not net(x.detach()).requires_grad


def test_a_norm_from_bn(names, x):
    """Its autograd is one Function, on a GPU and on a CPU."""
    forward = ['grouped_sums', 'grouped_lines', 'grouped_line']
    backward = ['grouped_sums', 'grouped_lines_backward', 'grouped_line',
                'tlu_join']
    net = GN(4, 2, share=.1).cuda()

    def second():
        first, = torch.autograd.grad(net(x).square().sum(), x,
                                     create_graph=True)
        first.square().sum().backward()

    assert names(lambda: net(x).sum().backward()) == forward + backward
    assert names(lambda: checkpoint(
        net, x, use_reentrant=False).sum().backward()) == (
            2 * forward + backward)
    # The first gradient and its own come of the definition.
    assert names(second) == forward + backward
    assert net.weight.grad.shape == (4, )
    assert names(lambda: net(x.half()).sum().backward()) == forward + backward
    assert net(x.half()).dtype == torch.float16
    with torch.inference_mode():
        assert names(lambda: net(x)) == forward
    assert names(lambda: torch.func.grad(lambda x: net(x).sum())(x)) == []
    net.requires_grad_(False)
    assert names(lambda: net(x).sum().backward()) == forward + backward


def test_a_copy_and_the_hooks_of_tensors(names, net, x):
    other = copy.deepcopy(net)
    seen = []
    other[0].weight.register_hook(lambda grad: seen.append(grad.shape))
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t.clone(), lambda t: t):
        other(x).sum().backward()
    assert seen == [(4, )]


def test_ddp(names, net, x, tmp_path):
    """Its hooks run as gradients come."""
    os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(net)
        assert names(lambda: parallel(x).sum().backward()) == (
            FORWARD + BACKWARD)
        assert all(p.grad is not None for p in net.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_a_map_of_nothing(names, net):
    """It launches nothing of ours, and has gradients."""
    for shape in (0, 4, 8, 8), (2, 4, 0, 8):
        x = torch.empty(shape, device='cuda', requires_grad=True)
        assert names(lambda x=x: net(x).sum().backward()) == []
        assert x.grad.shape == shape
