"""What is run, on what, and what is said where it does not run."""

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
