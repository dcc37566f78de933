"""What the benchmarks share: arguments, time, memory, the machine, a file."""

import argparse
import ctypes
import datetime
import json
import math
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import frn_mmdet


def add_arguments(parser, seconds, of_what):
    """Add what both benchmarks take.

    Args:
        parser (ArgumentParser): Of the benchmark.
        seconds (float): Default of ``--seconds``.
        of_what (str): What they are spent on, each.
    """
    parser.add_argument(
        '--device', type=_device,
        default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--threads', type=count, default=torch.get_num_threads(),
        help='of the CPU')
    parser.add_argument(
        '--seconds', type=_seconds, default=seconds,
        help=f'for {of_what}, training and inference each')
    parser.add_argument('--json', type=file_to_write, metavar='FILE')


def count(text):
    """Read a whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a whole number, 1 or more')
    return int(text)


def file_to_write(text):
    """Read a path, before an hour of measuring ends in no file."""
    path = Path(text)
    there = next(p for p in (path.absolute(), *path.absolute().parents)
                 if p.exists())
    if path.is_dir():
        raise argparse.ArgumentTypeError(f'{text} is a folder')
    if not os.access(there, os.W_OK) or (
            there != path.absolute() and not there.is_dir()):
        raise argparse.ArgumentTypeError(f'{text} cannot be written')
    return path


def _seconds(text):
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a number of seconds, 0 or more')
    return seconds


def _device(text):
    try:
        device = torch.device(text)
        there = device.type == 'cpu' or (
            device.type == 'cuda'
            and (device.index or 0) < torch.cuda.device_count())
    except RuntimeError:  # no device has such a name
        there = False
    if not there:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not here: cpu, or a GPU that PyTorch sees (cuda, '
            'cuda:1)')
    return device


def interleave(functions, device, seconds, prepare=None):
    """Time functions in turn, so that a slow moment is everybody's.

    Args:
        functions (dict): Names and functions without arguments.
        device (torch.device): Where they run.
        seconds (float): About how long to go on; 10 rounds at least.
        prepare (function, optional): Called before each call, not timed.

    Returns:
        dict: For each name, the median in ms.
    """
    for function in functions.values():
        for _ in range(3):  # compiles, allocates
            function()
    times = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 10 or (time.perf_counter() < end and rounds < 2000):
        rounds += 1
        for name, function in functions.items():
            if prepare is not None:
                prepare()
            times[name].append(_milliseconds(function, device))
    return {name: statistics.median(t) for name, t in times.items()}


def release_pages():
    """Give free memory back to the system, where the C library can.

    A large tensor gets fresh pages, which take longer than most kernels,
    unless there is room that a tensor before it left. Without this, which
    method finds such room is a matter of chance.
    """
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)


def keep_busy(device):
    """Return what gives a GPU work for a while, for ``interleave``.

    While it clears ten GiB, 3.5 ms on an H100, the calls of a layer reach its
    queue, so that what is timed is the GPU's work without the pauses between
    calls; nothing of the map is in its cache any more.
    """
    cleared = torch.empty(2**31, dtype=torch.uint8, device=device)

    def clear():
        for _ in range(5):
            cleared.zero_()

    return clear


def host_milliseconds(functions, device):
    """Time in turn how long calls take to return, the GPU being idle.

    Returns:
        dict: For each name, the median of 50 in ms.
    """
    times = {name: [] for name in functions}
    for _ in range(50):
        for name, function in functions.items():
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - start))
    torch.cuda.synchronize(device)
    return {name: statistics.median(t) for name, t in times.items()}


def _milliseconds(function, device):
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end)
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def peak_bytes(function, device):
    """Return how much more a call allocates at its peak than before it."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU],
                 profile_memory=True) as run:
        function()
    live = peak = 0
    events = run.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events
               if e.name() == '[memory]']
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        live += change
        peak = max(peak, live)
    return peak


def saved_bytes(function, parameters):
    """Return the bytes that autograd keeps, each storage counted once.

    Parameters are there in any case and do not count.
    """
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = function()  # alive until counted, or storages would repeat
    del output
    for parameter in parameters:
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def of_bn(row, rows, key, same):
    """Return a row's figure over that of BN, if BN was measured.

    Args:
        row (dict): With ``norm`` and the figures of one norm.
        rows (list[dict]): All of them.
        key (str): Of the figure.
        same (tuple[str]): Keys of what else must be the same.
    """
    for other in rows:
        if other['norm'] == 'BN' and all(
                other[k] == row[k] for k in same):
            return f'{row[key] / other[key]:.2f}'
    return '-'


def machine(device):
    """Return what ran, for the head of a report."""
    text = {
        'date': datetime.date.today().isoformat(),
        'CPU': _cpu(),
        'threads': torch.get_num_threads(),
        'Python': platform.python_version(),
        'torch': torch.__version__,
        'frn_mmdet': frn_mmdet.__version__,
        'kernel': frn_mmdet.kernel_for(device).name,
    }
    if device.type == 'cuda':
        text['GPU'] = torch.cuda.get_device_name(device)
    return text


def _cpu():
    info = Path('/proc/cpuinfo')
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def write(path, **report):
    """Write a report as JSON, in a folder that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + '\n')
