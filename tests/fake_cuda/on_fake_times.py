"""What FRN costs the CPU that a GPU waits for, beside BN and ReLU."""

import gc
import time

import pytest
import torch
from torch import nn

from frn_mmdet import FRN, GN, TLU

DEPTH = 20
MAPS = {'C3': (2, 512, 100, 168), 'P7': (1, 256, 7, 11)}


def times(layers, shape, rounds=30):
    """Microseconds of CPU time a layer: a step, and without gradients.

    In chains, in turns, the 10 % quantile: other work on the machine does not
    show.
    """
    chains = {name: nn.Sequential(*[layer() for _ in range(DEPTH)]).cuda()
              for name, layer in layers.items()}
    x = torch.empty(shape, device='cuda', requires_grad=True)
    grad = torch.empty_like(x)
    found = {name: ([], []) for name in chains}
    gc.disable()
    for _ in range(rounds):
        for name, chain in chains.items():
            for again in range(3):
                chain.zero_grad()
                start = time.process_time()
                chain(x).backward(grad)
                step = time.process_time()
                with torch.no_grad():
                    chain(x)
                end = time.process_time()
                if again:  # the first finds cold caches
                    found[name][0].append(step - start)
                    found[name][1].append(end - step)
    gc.enable()
    return {name: tuple(sorted(of)[len(of) // 10] / DEPTH * 1e6 for of in both)
            for name, both in found.items()}


@pytest.fixture(params=MAPS)
def measured(request, monkeypatch):
    # It takes a real GPU, and here is none: PyTorch's own kernels then.
    monkeypatch.setattr(torch.backends.cudnn, 'enabled', False)
    shape = MAPS[request.param]
    channels = shape[1]
    found = times({
        'FRN+TLU': lambda: FRN(channels, tlu=True),
        'BN+ReLU': lambda: nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()),
        'TLU': lambda: TLU(channels),
        'ReLU': nn.ReLU,
        'GN': lambda: nn.GroupNorm(32, channels),
        'GN from BN': lambda: GN(channels, share=.1),
    }, shape)
    print(request.param, found)
    return found


def test_frn_costs_less_than_bn(fake, measured):
    step, forward = (of / bn for of, bn in zip(
        measured['FRN+TLU'], measured['BN+ReLU'], strict=True))
    assert step < .75
    assert forward < .5


def test_a_tlu_costs_little_more_than_relu(fake, measured):
    """Which has no parameter, and so no gradient to put away."""
    assert measured['TLU'][0] < 2.1 * measured['ReLU'][0]


def test_gn_from_bn_costs_little_more_than_gn(fake, measured):
    step, forward = (of / gn for of, gn in zip(
        measured['GN from BN'], measured['GN'], strict=True))
    assert step < 1.3
    assert forward < 1.7
