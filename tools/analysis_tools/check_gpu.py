"""Check FRN's kernels on a GPU: right or wrong, fast or slow.

python -m frn_mmdet check_gpu [--no-detectors]

Some four minutes, most of which Triton compiles. Right: against the paper's
equations in float64, the same bits whether C++ launches a kernel or Python
does, at a second time, on a stream of its own, and on another GPU. Fast: the
time that FRN+TLU and TLU keep a CPU and a GPU, as a multiple of what BN+ReLU
and ReLU do, GN from BN beside GN, and a detector's training step. The exit
status is 1 if anything is wrong. The whole of what it prints is what a bug
report needs.
"""

import argparse
import logging
import math
import platform
import sys
import time
import warnings
from functools import partial

import torch
from torch import nn

import frn_mmdet
from frn_mmdet import FRN, GN, TLU, frn, kernel_for, use_kernel
from frn_mmdet.ops import tlu
from frn_mmdet.ops.definition import column, frn_definition, threshold
from frn_mmdet.ops.grouped import How, grouped_definition, grouped_norm
from frn_mmdet.utils.markdown import table

DTYPES = dict(float32=torch.float32, float16=torch.float16,
              bfloat16=torch.bfloat16, float64=torch.float64)
LAST = torch.channels_last
# (N, C, H, W), channels_last: every way over the rows of a map.
MAPS = [
    ((2, 64, 200, 168), False), ((2, 256, 100, 168), False),
    ((2, 512, 50, 84), False), ((64, 256, 7, 7), False),
    ((1, 256, 7, 11), False), ((3, 2, 91, 93), False),
    ((1, 3, 800, 1344), False), ((2, 3, 1, 1), False),
    ((2, 5, 7, 9), True), ((2, 256, 50, 84), True),
]
# What a call has beside the map: tau; eps, a number or of 1 or C; mean, var.
CALLS = dict(
    plain=(False, 1e-6, False), tlu=(True, 1e-6, False),
    learnt=(True, 1, False), reference=(True, 1e-6, True),
    all=(True, 'C', True))
# Of a norm that goes on from BN: groups, or all channels; whether it centres.
GROUPED = (32, True), ('C', True), (1, False)
# Of a detector at 800 x 1344, for times.
TIMED = {
    'stem': (2, 64, 400, 672), 'C2': (2, 256, 200, 336),
    'C3': (2, 512, 100, 168), 'C4': (2, 1024, 50, 84),
    'P7': (1, 256, 7, 11), 'RoIs': (512, 256, 7, 7),
}
DETECTORS = dict(
    RetinaNet='frn/retinanet_r50_fpn_frn-all_8xb2-6x_coco.py',
    MaskRCNN='frn/mask-rcnn_r50_fpn_frn-all_8xb2-6x_coco.py')
IMAGES = (2, 4)
SIZE = (800, 1344)
STEPS = 10


def main(argv=None):
    """Check, print, and say by the exit status how it was."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')
    if not torch.cuda.is_available():
        sys.exit('error: check_gpu needs a GPU, and PyTorch sees none')
    print(about(), flush=True)
    rows = check_all('cuda', MAPS)
    print('\n' + table(rows, list(rows[0])), flush=True)
    host = kernel_for('cuda')
    print(f'\nLaunched by {host.host}' +
          (f': {host.reason}' if host.reason else ''))
    torch.cuda.empty_cache()
    rows_of_time = [time_map(name, shape, dtype) for dtype in (
        torch.float32, torch.bfloat16) for name, shape in TIMED.items()]
    print('\n' + table(rows_of_time, list(rows_of_time[0])), flush=True)
    if args.detectors:
        steps = time_detectors('cuda')
        print('\n' + table(steps, list(steps[0])), flush=True)
    wrong = [row for row in rows if WRONG in row.values()]
    if wrong:
        sys.exit(f'\nerror: {len(wrong)} of {len(rows)} rows are wrong')
    print('\nall right')


def parse_args(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        '--no-detectors', dest='detectors', action='store_false',
        help='leave out the steps of whole detectors')
    return parser.parse_args(argv)


def about():
    """What a bug report says first."""
    import triton
    devices = [torch.cuda.get_device_name(i)
               for i in range(torch.cuda.device_count())]
    return ', '.join([
        time.strftime('%Y-%m-%d'), ' and '.join(devices),
        f'CUDA {torch.version.cuda}', f'torch {torch.__version__}',
        f'triton {triton.__version__}',
        f'Python {platform.python_version()}',
        f'frn_mmdet {frn_mmdet.__version__}', str(kernel_for('cuda'))])


# Right or wrong

RIGHT, WRONG, NONE = 'right', 'WRONG', '-'


def check_all(device, maps):
    """Return a row for each map and dtype."""
    rows = []
    for shape, last in maps:
        for name, dtype in DTYPES.items():
            if name == 'float64' and torch.Size(shape).numel() > 4e6:
                continue
            calls = [partial(frn_call, *call) for call in CALLS.values()]
            calls += [partial(grouped_call, *call) for call in GROUPED]
            verdicts = [check(make, shape, dtype, last, device)
                        for make in (*calls, tlu_call)]
            rows.append(dict(
                map='x'.join(map(str, shape)), dtype=name,
                layout='channels_last' if last else 'contiguous',
                **{key: _worst([v[key] for v in verdicts])
                   for key in verdicts[0]}))
    return rows


def _worst(verdicts):
    return WRONG if WRONG in verdicts else verdicts[0]


def check(make, shape, dtype, last, device):
    """Return what is right about a call, by question."""
    torch.manual_seed(0)
    inputs, call, definition = make(shape, dtype, device)
    grad = torch.randn(shape, device=device).to(dtype)
    if last:
        inputs[0], grad = (t.contiguous(memory_format=LAST)
                           for t in (inputs[0], grad))
    results = run(call, inputs, grad)
    same = partial(_same, results)
    verdict = {'as defined': right_or_wrong(is_right(
        results, definition, inputs, grad, call))}
    verdict['C++ and Python'] = NONE
    if kernel_for(device).host == 'cpp':
        with use_kernel('python'):
            verdict['C++ and Python'] = same(run(call, inputs, grad))
    verdict['twice'] = same(run(call, inputs, grad))
    verdict['side stream'] = verdict['other GPU'] = NONE
    if device == 'cuda':
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            again = run(call, inputs, grad)
        torch.cuda.synchronize()
        verdict['side stream'] = same(again)
        if torch.cuda.device_count() > 1:
            there = [None if t is None else t.to('cuda:1') for t in inputs]
            verdict['other GPU'] = same(
                [t.to('cuda:0') for t in run(call, there, grad.to('cuda:1'))])
    return verdict


def _same(results, others):
    return right_or_wrong(all(
        torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        for a, b in zip(results, others, strict=True)))


def right_or_wrong(is_right):
    """The word for it."""
    return RIGHT if is_right else WRONG


def frn_call(with_tau, eps, with_reference, shape, dtype, device):
    """Inputs, the operation on them, and its definition."""
    channels = shape[1]
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    make = partial(torch.randn, channels, dtype=wide, device=device)
    number = 1e-3 if isinstance(eps, float) else 1.
    learnt = None if isinstance(eps, float) else (
        torch.rand(channels if eps == 'C' else 1, dtype=wide,
                   device=device) + .1)
    mean, var, share = (make(), make().square() + .1, .3) if (
        with_reference) else (None, None, 1.)
    x = torch.randn(shape, device=device).to(dtype)
    inputs = [x, make(), make(), make() if with_tau else None, learnt]

    def call(x, weight, bias, tau, eps):
        return frn(x, weight, bias, tau, number if eps is None else eps,
                   *(None if t is None else t.to(x.device)
                     for t in (mean, var)), share)

    def definition(x, weight, bias, tau, eps):
        eps = number if eps is None else eps
        return frn_definition(
            x, weight, bias, tau, eps if var is None else eps * var.double(),
            None if mean is None else mean.double(), share)

    return inputs, call, definition


def tlu_call(shape, dtype, device):
    """The same of the TLU."""
    x = torch.randn(shape, device=device).to(dtype)
    tau = torch.randn(shape[1], device=device).to(dtype)
    return [x, tau], tlu, lambda x, tau: threshold(x, column(tau, x))


def grouped_call(groups, centred, shape, dtype, device):
    """The same of GN, IN and the like, from BN."""
    channels = shape[1]
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    weight, bias, mean, var = torch.randn(4, channels, dtype=wide,
                                          device=device)
    var = var.square() + .1
    x = torch.randn(shape, device=device).to(dtype)
    how = How(channels if groups == 'C' else math.gcd(channels, groups),
              1e-3, centred, .3)

    def call(x, weight, bias):
        return grouped_norm(x, how, weight, bias,
                            *(t.to(x.device) for t in (mean, var)))

    def definition(x, weight, bias):
        return grouped_definition(x, how, weight, bias, mean.double(),
                                  var.double())

    return [x, weight, bias], call, definition


def run(call, inputs, grad):
    """Return the result and its gradients."""
    leaves = [None if t is None else t.detach().requires_grad_()
              for t in inputs]
    y = call(*leaves)
    return [y.detach(), *torch.autograd.grad(
        y, [t for t in leaves if t is not None], grad)]


def is_right(results, definition, inputs, grad, call):
    """Whether errors are what rounding explains.

    That is, up to three times those of plain PyTorch in the same dtype, and a
    little, since a sum over a map may come out lucky there.
    """
    exact = run(definition, [None if t is None else t.double()
                             for t in inputs], grad.double())
    with use_kernel('plain'):
        plain = run(call, inputs, grad)
    for result, other, true in zip(results, plain, exact, strict=True):
        # Of float64 as well: eps and share reach the kernel as float32.
        little = max(torch.finfo(result.dtype).eps, 1e-6)
        error, usual = ((t.double() - true).abs().max() if t.numel() else 0.
                        for t in (result, other))
        if not error <= 3 * usual + little * true.abs().max():
            return False
    return True


# Fast or slow

def time_map(name, shape, dtype):
    """Return a row: what a step of a layer takes, beside BN+ReLU's."""
    channels = shape[1]
    groups = math.gcd(channels, 32)
    layers = {
        'FRN+TLU': FRN(channels, tlu=True), 'TLU': TLU(channels),
        'BN+ReLU': nn.Sequential(nn.BatchNorm2d(channels),
                                 nn.ReLU(inplace=True)),
        'ReLU': nn.ReLU(),
        'GN': nn.GroupNorm(groups, channels, dtype=dtype),
        'GN from BN': GN(channels, groups, share=.1)}
    nn.init.constant_(layers['GN from BN'].ref_var, 2.)
    x = torch.randn(shape, device='cuda', dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    steps = {key: partial(step, layer.cuda(), x, grad)
             for key, layer in layers.items()}
    cpu, gpu = times(steps)
    row = dict(map=name, dtype=str(dtype).removeprefix('torch.'))
    for what, of in (('host', cpu), ('GPU', gpu)):
        row |= {
            f'{what}: FRN+TLU us': f'{of["FRN+TLU"]:.0f}',
            '/ BN+ReLU' + ' ' * (what == 'GPU'):
            f'{of["FRN+TLU"] / of["BN+ReLU"]:.2f}',
            f'{what}: TLU us': f'{of["TLU"]:.0f}',
            '/ ReLU' + ' ' * (what == 'GPU'):
            f'{of["TLU"] / of["ReLU"]:.2f}',
            f'{what}: GN from BN us': f'{of["GN from BN"]:.0f}',
            '/ GN' + ' ' * (what == 'GPU'):
            f'{of["GN from BN"] / of["GN"]:.2f}'}
    return row


def step(layer, x, grad):
    """Forward and backward."""
    x.grad = None
    layer.zero_grad()
    layer(x).backward(grad)


def times(steps, rounds=20, calls=10):
    """Return microseconds a call, of the CPU and of the GPU, in turns.

    The CPU's with a GPU that is asleep, so that no call waits for a queue; the
    GPU's behind a sleep, so that it never waits for a call. The lower quarter
    of the rounds.
    """
    for function in steps.values():
        for _ in range(3):
            function()
    cpu, gpu = ({key: [] for key in steps} for _ in range(2))
    for _ in range(rounds):
        for key, function in steps.items():
            torch.cuda.synchronize()
            torch.cuda._sleep(20_000_000)  # 10 ms: longer than the calls take
            first, last = (torch.cuda.Event(enable_timing=True)
                           for _ in range(2))
            first.record()
            start = time.perf_counter()
            for _ in range(calls):
                function()
            cpu[key].append((time.perf_counter() - start) / calls * 1e6)
            last.record()
            torch.cuda.synchronize()
            gpu[key].append(first.elapsed_time(last) / calls * 1e3)
    return tuple({key: sorted(found)[len(found) // 4]
                  for key, found in of.items()} for of in (cpu, gpu))


def time_detectors(device):
    """Return a row for each detector and batch: milliseconds of a step."""
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    logging.disable(logging.WARNING)
    init_default_scope('mmdet')
    rows = []
    for name, path in DETECTORS.items():
        cfg = Config.fromfile(frn_mmdet.config_path(path))
        cfg.model.backbone.init_cfg = None
        for batch in IMAGES:
            torch.manual_seed(0)
            data = demo_mm_inputs(
                batch, [(3, *SIZE)] * batch, num_items=[8] * batch,
                with_mask=True)
            steps = {}
            for norm in ('FRN', 'BN'):
                cfg.model.norm_cfg = norm
                model = MODELS.build(cfg.model).to(device).train()
                steps[norm] = partial(detector_step, model, data)
            found = step_times(steps)
            rows.append({
                'detector': name, 'images': batch,
                **{f'{norm} ms': f'{ms:.0f}' for norm, ms in found.items()},
                'FRN / BN': f'{found["FRN"] / found["BN"]:.2f}'})
    return rows


def detector_step(model, data):
    """Losses and their gradients."""
    model.zero_grad()
    processed = model.data_preprocessor(data, True)
    model.parse_losses(
        model.forward(**processed, mode='loss'))[0].backward()


def step_times(steps):
    """Return the median of some steps in turn, in milliseconds."""
    found = {key: [] for key in steps}
    for round_ in range(STEPS + 3):
        for key, function in steps.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            torch.cuda.synchronize()
            if round_ >= 3:
                found[key].append((time.perf_counter() - start) * 1e3)
    return {key: sorted(of)[len(of) // 2] for key, of in found.items()}


if __name__ == '__main__':
    main()
