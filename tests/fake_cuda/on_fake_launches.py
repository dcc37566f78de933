"""What C++ launches, parameter for parameter, beside what Triton launches."""

import pytest
import torch

from frn_mmdet import FRN, GN, TLU, use_kernel
from frn_mmdet.ops import cuda

OPS = torch.ops.frn_mmdet
HALF = torch.bfloat16
WIDE, DOUBLE = torch.float32, torch.float64
# name: shape, channels_last
MAPS = {
    'whole': ((1, 256, 7, 11), False),
    'whole, RoIs': ((512, 256, 7, 7), False),
    'whole, one channel and position': ((2, 1, 1, 1), False),
    'meet': ((2, 512, 100, 168), False),
    'meet, odd': ((3, 2, 91, 93), False),
    'split': ((1, 3, 1200, 1600), False),
    'whole, last': ((2, 5, 7, 9), True),
    'split, last': ((2, 256, 100, 168), True),
}
# dtypes of the map and of weight and mean, tau, values of eps, mean, aligned
WAYS = [
    (WIDE, WIDE, True, None, False, True),
    (WIDE, WIDE, False, 1, True, True),
    (HALF, WIDE, True, 'C', True, False),
    (HALF, HALF, True, None, False, True),
    (DOUBLE, DOUBLE, True, 1, False, True),
]


def tensor(*shape, dtype=torch.float32, last=False, aligned=True):
    start = 0 if aligned else 1
    flat = torch.empty(torch.Size(shape).numel() + start, dtype=dtype,
                       device='cuda')
    if last:
        n, c, h, w = shape
        return flat[start:].view(n, h, w, c).permute(0, 3, 1, 2)
    return flat[start:].view(shape)


def by_both(fake, call, *inputs):
    """What Python launches for a call and what C++ does, by names."""
    found = []
    for choice in ('python', 'auto'):
        OPS.launch_in_cpp(choice == 'auto')
        call()  # compiles, or makes a plan
        outputs, launches = fake.launches(call)
        names = {t.data_ptr(): f'input {i}' for i, t in enumerate(inputs)
                 if t is not None}
        names |= {t.data_ptr(): f'output {i}' for i, t in enumerate(outputs)}
        launches.sort(key=lambda one: not one.kernel)  # memsets at the end
        found.append([_named(one, names) for one in launches])
    return found


def _named(launch, names):
    """A launch, with what is at an address in place of the address."""
    values = []
    for value in launch.parameters:
        if value > 1 << 40 and value not in names:
            names[value] = f'scratch {len(names)}'
        values.append(names.get(value, value))
    return launch._replace(parameters=tuple(values))


def check(python, cpp, words):
    """The same kernels; and C++ clears words, which PyTorch does else."""
    cleared = [one for one in cpp if not one.kernel]
    launched = [one for one in cpp if one.kernel]
    assert launched == python
    assert [one.parameters[1] for one in cleared] == (
        [8 * words] if words else [])
    for one in cleared:
        assert one.parameters[0] in launched[-1].parameters + (
            launched[0].parameters)
        assert one.stream == launched[0].stream
    return [one.kernel for one in launched]


@pytest.mark.parametrize('name', MAPS)
@pytest.mark.parametrize('dtype, narrow, tau, eps, mean, aligned', WAYS)
def test_frn(fake, name, dtype, narrow, tau, eps, mean, aligned):
    shape, last = MAPS[name]
    channels = shape[1]
    wide = DOUBLE if dtype is DOUBLE else WIDE
    x, grad = (tensor(*shape, dtype=dtype, last=last, aligned=aligned)
               for _ in range(2))
    weight, bias = tensor(channels, dtype=narrow), tensor(channels)
    tau = tensor(channels, dtype=wide, aligned=aligned) if tau else None
    mean = tensor(channels, dtype=narrow, aligned=False) if mean else None
    eps = tensor(channels if eps == 'C' else 1) if eps else None
    inv = tensor(*shape[:2], dtype=wide)
    rest = (weight, bias, tau, eps, .25, mean, .5)

    way = cuda._way_of(x, tau, eps, mean, 32)
    expected = name.partition(',')[0]
    if dtype is DOUBLE and expected == 'meet':
        expected = 'split'
    assert way.name == expected
    words = way.words(x).numel() if expected == 'meet' else 0
    split = expected == 'split'
    assert check(
        *by_both(fake, lambda: OPS.frn(x, *rest), x, weight, bias, tau, eps,
                 mean), words) == ['forward_sums'] * split + ['forward']
    assert check(
        *by_both(fake, lambda: OPS.frn_backward(grad, x, inv, *rest),
                 grad, x, inv, weight, bias, tau, eps, mean), words) == (
                     ['backward_sums'] * split + ['backward', 'join'])


@pytest.mark.parametrize('name', MAPS)
@pytest.mark.parametrize('dtype, aligned', [
    (WIDE, True), (HALF, False), (DOUBLE, True)])
def test_tlu(fake, name, dtype, aligned):
    shape, last = MAPS[name]
    x, grad = (tensor(*shape, dtype=dtype, last=last, aligned=aligned)
               for _ in range(2))
    tau = tensor(shape[1], dtype=dtype, aligned=not aligned)
    python, cpp = by_both(fake, lambda: OPS.tlu(x, tau), x, tau)
    assert check(python, cpp, 0) == ['tlu']
    bits = OPS.tlu(x, tau)[1]
    python, cpp = by_both(
        fake, lambda: OPS.tlu_backward(grad, bits, last), grad, bits)
    assert check(python, cpp, 0) == ['tlu_backward', 'tlu_join']


@pytest.mark.parametrize('name', MAPS)
@pytest.mark.parametrize('dtype, narrow, groups, centred, aligned', [
    (WIDE, WIDE, 'C', True, True), (HALF, WIDE, 1, False, False),
    (DOUBLE, DOUBLE, 1, True, True)])
def test_grouped(fake, name, dtype, narrow, groups, centred, aligned):
    shape, last = MAPS[name]
    channels = shape[1]
    groups = channels if groups == 'C' else groups
    wide = DOUBLE if dtype is DOUBLE else WIDE
    x, grad = (tensor(*shape, dtype=dtype, last=last, aligned=aligned)
               for _ in range(2))
    weight, bias = tensor(channels, dtype=narrow), tensor(channels)
    mean, var = tensor(channels, aligned=aligned), tensor(channels)
    means, roots = (tensor(shape[0], groups, dtype=wide) for _ in range(2))
    python, cpp = by_both(
        fake, lambda: OPS.grouped(x, weight, bias, mean, var, groups, 1e-3,
                                  .5, centred), x, weight, bias, mean, var)
    assert check(python, cpp, 0) == [
        'grouped_sums', 'grouped_lines', 'grouped_line']
    python, cpp = by_both(
        fake, lambda: OPS.grouped_backward(
            grad, x, means, roots, weight, mean, var, groups, .5, centred),
        grad, x, means, roots, weight, mean, var)
    assert check(python, cpp, 0) == [
        'grouped_sums', 'grouped_lines_backward', 'grouped_line', 'tlu_join']


def test_a_step_launches_what_it_must(fake):
    """No cast, no sum of PyTorch's own, whoever launches."""
    x = torch.empty(2, 64, 56, 56, device='cuda', requires_grad=True)
    grad = torch.empty_like(x)
    for layer, launches in ((FRN(64, tlu=True), 3), (FRN(64), 3),
                            (TLU(64), 3), (GN(64, share=.1), 7)):
        layer.cuda()

        def step(layer=layer):
            x.grad = None
            layer.zero_grad()
            layer(x).backward(grad)
            return []

        for choice in ('python', 'auto'):
            with use_kernel(choice):
                step()
                before = fake.kernels()
                assert len(fake.launches(step)[1]) == launches
                # and none of PyTorch's own, such as a cast
                assert fake.kernels() - before == launches
