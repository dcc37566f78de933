import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import mmdet
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader, checkpoint
from mmengine.runner.checkpoint import load_checkpoint, save_checkpoint
from scripts import load
from torch import nn

from frn_mmdet import stack  # declares what mmengine's checkpoints hold
from frn_mmdet.errors import ConfigError


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
    code = ('import sys; import torch; import frn_mmdet;'
            'from frn_mmdet import FRN, ConfigError, ConvWS, TLU, fold_ws, '
            'frn, norm_sites, switch_norms, tlu;'
            'net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), '
            'torch.nn.BatchNorm2d(8), torch.nn.ReLU());'
            'switch_norms(net, "FRN", torch.randn(1, 3, 8, 8));'
            'assert net[1].tau is not None;'
            'assert not {"mmdet", "mmcv.ops"} & set(sys.modules);'
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


# Where it is, mmengine's own way is not touched.
without_torchvision = pytest.mark.skipif(
    find_spec('torchvision') is not None, reason='torchvision is here')
R18 = 'resnet18-f37072fd.pth'  # as torchvision's address of resnet18 ends


@without_torchvision
@pytest.mark.parametrize('norm_cfg', [None, 'FRN', 'BN'])
def test_torchvisions_weights_are_found_in_torch_hub(build, hub, norm_cfg):
    """By a stock config's init_cfg, whoever's detector it is."""
    options = {
        'backbone.depth': 18, 'neck.in_channels': [64, 128, 256, 512],
        'backbone.init_cfg.checkpoint': 'torchvision://resnet18'}
    state = build('RetinaNet', 'BN', options).backbone.state_dict()
    torch.save(state, hub / R18)
    backbone = build('RetinaNet', norm_cfg, options, seed=1).backbone
    assert not torch.equal(backbone.conv1.weight, state['conv1.weight'])
    backbone.init_weights()
    for name in 'conv1.weight', 'layer4.1.conv2.weight':
        assert torch.equal(backbone.state_dict()[name], state[name])
    norm = 'layer1.0.frn1' if norm_cfg == 'FRN' else 'layer1.0.bn1'
    assert torch.equal(backbone.state_dict()[f'{norm}.bias'],
                       state['layer1.0.bn1.bias'])


@without_torchvision
def test_torchvisions_weights_are_found_by_every_tool(hub, tmp_path, capsys):
    bn = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    torch.save(bn.state_dict(), hub / R18)
    for name in 'torchvision://resnet18', 'modelzoo://resnet18':
        model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False))
        load_checkpoint(model, name)
        assert torch.equal(model[0].weight, bn[0].weight)
        load('convert_checkpoint').main([name, str(tmp_path / 'frn.pth')])
        assert '1 BN became FRN' in capsys.readouterr().out


@without_torchvision
def test_torchvisions_weights_are_downloaded_once(hub, tmp_path, monkeypatch):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    state = nn.Linear(2, 2).state_dict()
    torch.save(state, tmp_path / 'a-12345678.pth')
    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f'http://127.0.0.1:{server.server_port}/a-12345678.pth'
        monkeypatch.setattr(stack, 'torchvision_urls', lambda: dict(a=url))
        try:
            load_checkpoint(nn.Linear(2, 2), 'torchvision://a')
        finally:
            server.shutdown()
    assert [path.name for path in hub.iterdir()] == ['a-12345678.pth']
    model = nn.Linear(2, 2)
    load_checkpoint(model, 'torchvision://a')
    assert torch.equal(model.weight, state['weight'])


@without_torchvision
@pytest.mark.parametrize('name, near', [
    ('resnet51', 'resnet50'), ('resnet50.imagenet1k_v2', 'resnet50'),
    ('shufflenetv2_x1.5', 'shufflenetv2_x1.0'), ('', 'none'),
])
def test_a_name_that_torchvision_has_not(name, near):
    with pytest.raises(ConfigError) as error:
        CheckpointLoader.load_checkpoint(f'torchvision://{name}')
    for word in (f'torchvision://{name}: ', near, 'not installed'):
        assert word in str(error.value)
    assert '\n' not in str(error.value)


def test_every_name_in_mmdets_configs_has_an_address():
    folder = Path(mmdet.__file__).with_name('.mim') / 'configs'
    text = '\n'.join(path.read_text() for path in folder.rglob('*.py'))
    tables = {'torchvision': stack.torchvision_urls(),
              'open-mmlab': checkpoint.get_external_models()}
    names = re.findall(r"'([\w-]+)://([\w/.-]+)'", text)
    found = {scheme: {name for other, name in names if other == scheme}
             for scheme in tables}
    assert len(found['torchvision']) >= 4 and len(found['open-mmlab']) >= 20
    for scheme, table in tables.items():
        for name in found[scheme]:
            assert table[name].startswith('https://')


def test_nobody_elses_loader_is_replaced(monkeypatch):
    """One of a company's mirror, say, or mmengine's where it works."""
    monkeypatch.setattr(CheckpointLoader, '_schemes',
                        dict(CheckpointLoader._schemes))

    def loader_after(loader, torchvision):
        CheckpointLoader.register_scheme(
            ('torchvision://', 'modelzoo://'), loader, force=True)
        monkeypatch.setattr(stack, 'find_spec', lambda name: torchvision)
        stack.find_torchvision_weights()
        return CheckpointLoader._get_checkpoint_loader('torchvision://a')

    def mirror(filename, map_location=None):
        return {}

    own = checkpoint.load_from_torchvision
    assert loader_after(mirror, None) is mirror
    assert loader_after(own, 'there') is own
    assert loader_after(own, None) is stack.load_from_torchvision
