"""What is run, on what, and what is said where it does not run."""

import copy
import sys
import threading

import pytest
import torch
from mmcv.cnn import ConvModule, is_norm
from mmcv.ops import CARAFEPack
from torch import nn

from frn_mmdet.switch.small_run import flow_of


@pytest.mark.parametrize('config', [
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py',  # no RPN
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',  # boxes with features
    'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',  # a head beside
    'mmdet::yolact/yolact_r50_1xb8-55e_coco.py',
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
])
def test_every_norm_of_a_detector_runs(build, config):
    model = build(config, None, {'backbone.init_cfg': None})
    flow = flow_of(model)
    assert flow.failures == []
    assert {path for path, module in model.named_modules()
            if is_norm(module)} == set(flow.norms)


def test_a_larger_image_where_the_first_is_too_small(build):
    """DDOD pools maps of stride 128 by kernels of 3x3."""
    model = build('mmdet::ddod/ddod_r50_fpn_1x_coco.py', None,
                  {'backbone.init_cfg': None})
    flow = flow_of(model)
    assert flow.failures == []
    assert flow.norms['backbone.bn1'].shape == (1, 64, 64, 128)


def test_what_runs_on_a_gpu_only_has_a_stand_in(build):
    model = build('mmdet::carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py', None,
                  {'backbone.init_cfg': None})
    assert flow_of(model).failures == []
    layers = [m for m in model.modules() if isinstance(m, CARAFEPack)]
    assert layers
    assert not any('forward' in vars(layer) for layer in layers)


class Segmentor(nn.Module):
    """As mmsegmentation's, in whose environment there may be no mmdet."""

    def __init__(self):
        super().__init__()
        self.backbone = ConvModule(3, 8, 1, norm_cfg=dict(type='FRN'))
        self.decode_head = ConvModule(8, 8, 1, norm_cfg=dict(type='FRN'))

    def extract_feat(self, inputs):
        return self.backbone(inputs)

    def forward(self, inputs, data_samples, mode):
        assert mode == 'tensor'
        return self.decode_head(self.extract_feat(inputs))


def test_another_packages_model_runs_without_mmdet(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet.structures', None)
    flow = flow_of(Segmentor())
    assert flow.failures == []
    assert list(flow.norms) == ['backbone.frn', 'decode_head.frn']
    assert [act.op for act in flow.acts] == ['relu'] * 2
    assert not flow.apart


class Pyramid(nn.Module):
    """Takes several maps and fails on the last."""

    def __init__(self, fails):
        super().__init__()
        self.in_channels = [4, 8]
        self.convs = nn.ModuleList(ConvModule(
            c, c, 1, norm_cfg=dict(type='FRN')) for c in self.in_channels)
        self.fails = fails

    def forward(self, maps):
        if self.fails:
            raise ValueError('first line\nsecond line')
        return [conv(x) for conv, x in zip(self.convs, maps, strict=True)]


@pytest.mark.parametrize('fails', [False, True])
def test_a_module_on_its_own(fails):
    flow = flow_of(Pyramid(fails))
    assert {path: seen.shape[1] for path, seen in flow.norms.items()} == {
        'convs.0.frn': 4, 'convs.1.frn': 8}
    assert [act.module for act in flow.acts if act.mark] == [
        'convs.0.activate', 'convs.1.activate']
    # Where it fails its parts run, and what they give is lost to sight.
    assert ('Pyramid: ValueError: first line' in flow.failures) is fails
    assert flow.escaped == set()  # since each has been activated


def test_half_precision_and_other_channels():
    for dtype in (torch.float64, torch.bfloat16):
        model = nn.Sequential(nn.Conv2d(5, 8, 3), nn.BatchNorm2d(8),
                              nn.ReLU()).to(dtype)
        assert flow_of(model).norms['1'].shape == (1, 8, 62, 62)


class Asks(nn.Module):
    """Looks like a detector, and fails as it is told to."""

    def __init__(self, error, works_at=None):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.error = error
        self.works_at = works_at
        self.asked = []

    def extract_feat(self, x):
        return self.backbone(x)

    def forward(self, x, samples, mode):
        self.asked.append((mode, *x.shape[2:]))
        x = self.extract_feat(x)
        if (mode, *x.shape[2:]) != self.works_at:
            raise self.error(f'no {mode} of {tuple(x.shape[2:])}')
        return x


def asked(model, training=False):
    copies = []
    model.register_forward_hook(
        lambda model, args, output: copies.append(model), always_call=True)
    flow = flow_of(model, training)
    assert model.asked == []
    return copies[-1].asked, flow


@pytest.mark.parametrize('training', [False, True])
def test_what_users_run_is_tried(training):
    modes = ['loss', 'tensor', 'predict'] if training else [
        'tensor', 'predict', 'loss']
    for i, mode in enumerate(modes):
        tried, flow = asked(Asks(KeyError, (mode, 128, 256)), training)
        assert tried == [(m, 128, 256) for m in modes[:i + 1]]
        assert flow.failures == []


def test_larger_images_are_tried_where_the_error_may_be_their_size():
    tried, flow = asked(Asks(RuntimeError, ('predict', 1024, 1024)))
    assert tried[-1] == ('predict', 1024, 1024)
    assert flow.failures == []
    tried, flow = asked(Asks(TypeError, ('predict', 1024, 1024)))
    assert tried == [(mode, 128, 256) for mode in (
        'tensor', 'predict', 'loss')]
    assert flow.escaped == {'backbone.1'}  # it ran on its own


class Says(Asks):

    def extract_feat(self, x):
        if x.shape[-1] < 512:
            raise RuntimeError('too small')
        return super().extract_feat(x)


def test_what_fails_in_one_place_is_tried_once_a_size():
    tried, _ = asked(Says(RuntimeError, ('tensor', 512, 512)))
    assert [mode for mode, *_ in tried] == ['tensor', 'predict', 'loss',
                                            'tensor']


class Shares(nn.Module):
    """It has a lock, which no copy can have, and counts."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.runs = 0

    def forward(self, x):
        with self.lock:
            self.runs += 1
            assert 'forward' in vars(self.norm)  # watched
            return self.norm(self.conv(x))


def test_the_model_itself_never_runs():
    model = Shares()
    before = copy.deepcopy(model.state_dict())
    for training in (False, True):
        assert set(flow_of(model, training).norms) == {'norm'}
    assert model.runs == 0
    assert 'forward' not in vars(model.norm)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
