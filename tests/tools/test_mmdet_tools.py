"""The tools that mmdet installs, run on detectors whose norm is FRN."""

import importlib.util
import re
import sys
import time
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope
from torch import nn

from frn_mmdet.errors import ConfigError

TOOLS = Path(mmdet.__file__).with_name('.mim') / 'tools'
ROOT = Path(__file__).parents[2]
DEMO = ROOT / 'configs/demo/retinanet_r18_fpn_frn_shapes.py'
QUICK = ['test_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
         'test_dataloader.persistent_workers=False',
         'val_dataloader.persistent_workers=False']


@pytest.fixture
def mmdet_tool(shapes, tmp_path, monkeypatch):
    """mmdet_tool(name, *args): call the main of one of mmdet's tools."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('SHAPES_ROOT', str(shapes))
    monkeypatch.setenv('LOCAL_RANK', '0')  # test.py's parser sets it

    def _mmdet_tool(name, *args):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
        spec = importlib.util.spec_from_file_location('tool', TOOLS / name)
        tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tool)
        tool.main()

    return _mmdet_tool


def build(**norm_cfg):
    """The demo's detector, with random weights."""
    torch.manual_seed(0)
    init_default_scope('mmdet')
    model = Config.fromfile(DEMO).model
    model.norm_cfg = dict(type='FRN', **norm_cfg)
    return MODELS.build(model).eval()


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(model): a file as a training leaves it."""

    def _checkpoint(model):
        path = tmp_path / 'epoch_1.pth'
        torch.save(dict(
            meta=dict(dataset_meta=dict(classes=('circle', ))),
            state_dict=model.state_dict(), optimizer={},
            message_hub=dict(log_scalars=dict(lr=HistoryBuffer()))), path)
        return path

    return _checkpoint


def test_get_flops_counts_what_the_convolutions_multiply(mmdet_tool, capsys):
    mmdet_tool('analysis_tools/get_flops.py', DEMO, '--num-images', 1,
               '--cfg-options', 'model.norm_cfg.ws=True', *QUICK)
    said = re.search(r'Flops: ([\d.]+)G', capsys.readouterr().out)[1]
    count = 0

    def add(conv, inputs, out):
        nonlocal count
        count += out.numel() * conv.weight[0].numel()

    model = build(ws=True)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    model(torch.zeros(1, 3, 128, 128))
    assert float(said) == pytest.approx(count / 1e9, abs=.0006)


def test_publish_model_keeps_the_mark_of_the_weights(mmdet_tool, checkpoint,
                                                     monkeypatch, tmp_path):
    """What a state dict says of itself beside its tensors."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    model = build(ws=True)
    mmdet_tool('model_converters/publish_model.py', checkpoint(model),
               tmp_path / 'frn.pth')
    monkeypatch.delenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')
    deadline = time.time() + 10  # the tool does not wait for its mv
    while not (found := [*tmp_path.glob('frn-*.pth')]):
        assert time.time() < deadline
        time.sleep(.01)
    published = torch.load(found[0], weights_only=True)
    assert set(published) == {'meta', 'state_dict'}
    other = build(ws=True)
    for weight in other.parameters():
        nn.init.zeros_(weight)
    other.load_state_dict(published['state_dict'])
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])
    with pytest.raises(ConfigError, match='ws'):
        build().load_state_dict(published['state_dict'])


def test_tta_of_one_view_is_the_test(mmdet_tool, checkpoint, tmp_path):
    path = checkpoint(build())
    config = tmp_path / 'one_view.py'
    config.write_text(f"""
_base_ = {str(DEMO)!r}
model = dict(test_cfg=dict(score_thr=0.))
tta_model = dict(type='DetTTAModel', tta_cfg=dict(
    nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale=(128, 128), keep_ratio=True)],
        [dict(type='RandomFlip', prob=0.)],
        [dict(type='PackDetInputs', meta_keys=(
            'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor',
            'flip', 'flip_direction'))]])]
""")
    mmdet_tool('test.py', config, path, '--tta', '--out', 'out.pkl',
               '--cfg-options', 'test_dataloader.batch_size=1', *QUICK)
    detector = init_detector(str(config), str(path), device='cpu')
    for result in load('out.pkl'):
        tta = result['pred_instances']
        plain = inference_detector(detector, result['img_path'])
        assert len(tta['scores']) == 100
        for key in 'scores', 'bboxes', 'labels':
            torch.testing.assert_close(
                tta[key], plain.pred_instances[key], rtol=1e-5, atol=1e-4)
