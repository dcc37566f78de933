"""The tool that checks a GPU goes through, and sees that this is none."""

import pytest
import torch
from scripts import load

tool = load('check_gpu')


def test_it_goes_through(fake, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.cudnn, 'enabled', False)
    monkeypatch.setattr(tool, 'MAPS', [((2, 3, 9, 7), False)])
    monkeypatch.setattr(tool, 'TIMED', {'P7': (1, 256, 7, 11)})
    with pytest.raises(SystemExit, match='of 4 rows are wrong'):
        tool.main(['--no-detectors'])
    text = capsys.readouterr().out
    assert 'Fake H100 and Fake H100' in text
    assert 'Launched by cpp' in text
    assert '| P7 ' in text
