"""Who launches: C++ where it can, else Python, and how that is said."""

import threading

import pytest
import torch
from triton import knobs

from frn_mmdet import FRN, TLU, kernel_for, use_kernel
from frn_mmdet.ops import cuda, cuda_host

OPS = torch.ops.frn_mmdet


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """What a test makes it give way for is forgotten."""
    for name in ('_reason', '_compared'):
        monkeypatch.setattr(cuda_host, name, type(getattr(
            cuda_host, name))())
    cuda_host.follow(True)
    yield
    monkeypatch.undo()
    cuda_host.follow(True)


@pytest.fixture
def by_python(monkeypatch):
    """by_python(): how often Python's kernels were called since."""
    calls = []
    launch = cuda_host.launch

    def counted(*arguments, **constants):
        calls.append(arguments)
        return launch(*arguments, **constants)

    monkeypatch.setattr(cuda, 'launch', counted)

    def count():
        number = len(calls)
        calls.clear()
        return number

    return count


def new_map(channels=3):
    """A map of a size that no test had before: the first of its kind."""
    new_map.size += 1
    return torch.empty(2, channels, 5, new_map.size, device='cuda')


new_map.size = 100


def test_it_is_said_who_launches():
    assert kernel_for('cuda') == ('triton', '', 'cpp')
    with use_kernel('python'):
        assert kernel_for('cuda') == ('triton', 'it was asked for', 'python')
    with use_kernel('plain'):
        assert kernel_for('cuda').name == 'plain'
    assert kernel_for('cuda') == ('triton', '', 'cpp')


@pytest.mark.parametrize('layer', [FRN(3, tlu=True), TLU(3)])
def test_python_launches_the_first_of_a_kind_alone(by_python, layer):
    layer, x = layer.cuda(), new_map()
    with torch.no_grad():
        layer(x)
        assert by_python() == 1
        layer(x)
        assert by_python() == 0
        layer(x.half())
        assert by_python() == 1
        layer(x.half())
        assert by_python() == 0
        with use_kernel('python'):
            layer(x)
        assert by_python() == 1
        layer(x)
        assert by_python() == 0


def test_triton_hooks_see_every_launch(by_python):
    layer, x, seen = FRN(3).cuda(), new_map(), []
    layer(x)
    hook = lambda metadata: seen.append(metadata.get()['name'])  # noqa: E731
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        assert kernel_for('cuda').host == 'python'
        assert 'hooks' in kernel_for('cuda').reason
        layer(x)
        assert seen == ['forward']
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    by_python()
    layer(x)
    assert by_python() == 0
    assert seen == ['forward']


def test_a_kernel_is_compared_once(monkeypatch):
    compared = []
    monkeypatch.setattr(cuda_host, '_are_same',
                        lambda *both: compared.append(both) or True)
    for _ in range(3):  # other sizes, the same kernel
        OPS.tlu(new_map(), torch.empty(3, device='cuda'))
    assert len(compared) == 1
    ours, theirs = compared[0]
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]


def test_results_that_differ_give_way(monkeypatch, by_python, caplog):
    monkeypatch.setattr(cuda_host, '_are_same', lambda *_: False)
    layer, x = FRN(3).cuda(), new_map()
    y = layer(x)
    assert 'results of forward differ' in kernel_for('cuda').reason
    assert kernel_for('cuda').host == 'python'
    by_python()
    y.sum().backward()  # by Python, and works
    layer(x)
    assert by_python() == 3


@pytest.mark.parametrize('demand, value', [
    ('global_scratch_size', 128), ('num_ctas', 2), ('launch_pdl', True)])
def test_what_it_does_not_know_gives_way(monkeypatch, demand, value):
    monkeypatch.setitem(cuda_host.DEMANDS, demand, value)
    FRN(3).cuda()(new_map())
    assert f'forward has {demand}' in kernel_for('cuda').reason


def test_other_parameters_give_way(monkeypatch):
    monkeypatch.setitem(cuda_host.PTX, 'float', 'f64')
    FRN(3).cuda()(new_map())
    assert "takes ['u64', " in kernel_for('cuda').reason


def test_a_launch_that_fails_gives_way(monkeypatch):
    written = cuda_host._written
    monkeypatch.setattr(cuda_host, '_written', lambda one: [
        0 if i == 1 else n for i, n in enumerate(written(one))])  # no programs
    FRN(3).cuda()(new_map())
    assert 'CUDA error' in kernel_for('cuda').reason


def test_bits_are_compared():
    """NaN equals itself, and 0 not -0."""
    same = lambda a, b: all(  # noqa: E731
        torch.equal(cuda_host._bits(x), cuda_host._bits(y))
        for x, y in zip(a, b, strict=True))
    zero, nan = torch.zeros(2), torch.full((2, ), float('nan'))
    assert same([nan, zero.half()], [nan.clone(), zero.half()])
    assert not same([zero], [-zero])


def test_a_capture_is_left_alone(monkeypatch, by_python):
    """The comparison waits for the GPU, which a capture cannot."""
    layer, x = FRN(3).cuda(), new_map()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
        layer(x)
        layer(x)
        assert by_python() == 2
    layer(x)
    layer(x)
    assert by_python() == 1


def test_threads_streams_and_devices(fake):
    """Each launch on its stream, in a thread that has done nothing yet."""
    layer, x = FRN(3, tlu=True).cuda(), new_map()
    layer(x)
    stream = torch.cuda.Stream()
    found = []

    def step():
        with torch.cuda.stream(stream):
            found.append(fake.launches(lambda: layer(x))[1])

    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    launch, = found[0]
    assert launch.stream == stream.cuda_stream != 0

    other, y = FRN(3).to('cuda:1'), x.to('cuda:1').requires_grad_()
    for _ in range(2):
        other(y).sum().backward()
    assert y.grad.device == y.device == torch.device('cuda:1')
    assert torch.cuda.current_device() == 0


def test_a_first_call_that_fails_leaves_nothing(monkeypatch):
    """It would keep the tensors of every launch from then on."""
    def fails(*arguments, **constants):
        raise RuntimeError('out of memory')

    with monkeypatch.context() as patch:
        patch.setattr(cuda, 'launch', fails)
        with pytest.raises(RuntimeError, match='out of memory'):
            FRN(3).cuda()(new_map())
    assert cuda_host._recorder.launched is None
    assert kernel_for('cuda').host == 'cpp'
