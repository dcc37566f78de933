import subprocess
import sys
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner.checkpoint import load_checkpoint, save_checkpoint
from torch import nn

import frn_mmdet  # noqa: F401  (declares what mmengine's checkpoints hold)


@pytest.mark.parametrize('package', ['mmengine', 'mmcv'])
def test_import_says_what_to_install(package):
    code = f'import sys; sys.modules[{package!r}] = None; import frn_mmdet'
    run = subprocess.run([sys.executable, '-c', code],
                         capture_output=True,
                         text=True,
                         timeout=300)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: frn_mmdet needs')
    assert package in last
    assert 'frn_mmdet[onedl]' in last
    assert 'frn_mmdet[openmmlab]' in last


def test_what_readme_names_can_be_imported_from_the_package():
    code = ('import sys; import frn_mmdet; assert "mmdet" not in sys.modules;'
            'from frn_mmdet import *; from frn_mmdet import ResNetV2, '
            'NormSwitch, LN, BRN, GFRN, LFRN; assert not hasattr('
            'frn_mmdet, "ResNetV3"); print(ResNetV2(18).norm_name, LN)')
    run = subprocess.run([sys.executable, '-c', code], capture_output=True,
                         text=True, timeout=300)
    assert run.stdout.startswith("bn <class 'frn_mmdet.layers."), run.stderr


def test_a_checkpoint_with_its_log_loads_without_trusting_it(tmp_path):
    """On torch >= 2.6, where only weights and declared classes load."""
    hub = MessageHub.get_instance('test_stack')
    for value in (1.5, np.float32(2.5), np.float64(3.5)):
        hub.update_scalar('train/loss', value)
    hub.update_info('iter', 7)
    model = nn.Linear(2, 2)
    path = str(tmp_path / 'iter_7.pth')
    save_checkpoint(
        dict(
            state_dict=model.state_dict(),
            message_hub=hub.state_dict(),
            meta=dict(seed=np.int64(3))), path)
    loaded = load_checkpoint(nn.Linear(2, 2), path)
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert history.current() == pytest.approx(3.5)


def test_a_checkpoint_cannot_reach_further():
    from frn_mmdet.stack import _history_method
    assert _history_method(HistoryBuffer, 'mean') is HistoryBuffer.mean
    for owner, name in ((HistoryBuffer, '__init__'), (torch, 'load')):
        with pytest.raises(UnpicklingError, match=name):
            _history_method(owner, name)
