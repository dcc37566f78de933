"""The check itself, on a CPU's kernel: it passes what is right alone."""

import pytest
import torch
from scripts import load

from frn_mmdet.ops import kernel_for

tool = load('check_gpu')
MAPS = [((2, 3, 9, 7), False), ((2, 5, 4, 3), True)]
assert kernel_for('cpu').name == 'cpp'


def test_what_is_right_is_right():
    rows = tool.check_all('cpu', MAPS)
    assert len(rows) == len(MAPS) * len(tool.DTYPES)
    for row in rows:
        assert row['as defined'] == row['C++ and Python'] == row['twice'] == (
            tool.RIGHT)
        assert row['other GPU'] == tool.NONE


@pytest.mark.parametrize('wrong', [
    lambda y: y * 1.05, lambda y: torch.where(y > 2, 2, y),
    lambda y: y * float('nan')])
@pytest.mark.parametrize('name', ['frn', 'tlu', 'grouped_norm'])
def test_what_is_wrong_is_found(monkeypatch, name, wrong):
    true = getattr(tool, name)

    def operation(*arguments):
        y = true(*arguments)
        return y if kernel_for('cpu').name == 'plain' else wrong(y)

    monkeypatch.setattr(tool, name, operation)
    rows = tool.check_all('cpu', MAPS[:1])
    assert {row['as defined'] for row in rows} == {tool.WRONG}


def test_what_changes_is_found(monkeypatch):
    true, calls = tool.frn, []

    def operation(*arguments):
        calls.append(arguments)
        return true(*arguments) * (1 + 1e-3 * (len(calls) % 2))

    monkeypatch.setattr(tool, 'frn', operation)
    row = tool.check_all('cpu', MAPS[:1])[0]
    assert tool.WRONG in (row['twice'], row['C++ and Python'])


def test_without_a_gpu_it_says_so():
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match='needs a GPU'):
            tool.main([])


@pytest.mark.slow  # it builds a whole detector
def test_the_steps_of_detectors(monkeypatch):
    """With small images, on the CPU."""
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    detectors = {'RetinaNet': tool.DETECTORS['RetinaNet']}
    for name, value in dict(DETECTORS=detectors, IMAGES=[2], SIZE=(64, 64),
                            STEPS=1).items():
        monkeypatch.setattr(tool, name, value)
    rows = tool.time_detectors('cpu')
    assert [row['detector'] for row in rows] == list(tool.DETECTORS)
    assert all(float(row['FRN / BN']) > 0 for row in rows)
