"""A detector compiled ahead of time finds what ``predict`` finds."""

import subprocess
import sys

import pytest
import torch

from frn_mmdet.export.pt2 import export_pt2
from frn_mmdet.export.retinanet import Detections

RUN = """
import sys
import torch
model = torch._inductor.aoti_load_package(sys.argv[1])
found = [model(*args) for args in torch.load(sys.argv[2])]
assert not {'mmdet', 'mmcv', 'frn_mmdet'} & set(sys.modules)
torch.save(found, sys.argv[3])
"""
# Three levels, and few layers: each is compiled by itself.
FEW = {
    'neck.num_outs': 3,
    'bbox_head.num_classes': 5,
    'bbox_head.stacked_convs': 1,
    'bbox_head.anchor_generator.strides': [8, 16, 32],
    'test_cfg.score_thr': 0.01,
    'test_cfg.max_per_img': 20,
}


@pytest.mark.slow
def test_it_finds_without_the_plugin_what_predict_does(small, tmp_path):
    model = small('RetinaNet', options=FEW).eval()
    model.bbox_head.retina_cls.bias.data.fill_(-1.)
    # Scores spread, and none is 1: equal ones have no order.
    model.bbox_head.retina_cls.weight.data *= 4
    export_pt2(model, tmp_path / 'out.pt2')
    inputs = [(torch.randn(n, 3, h, w), torch.tensor([[h, w - 9]] * n))
              for n, h, w in ((1, 128, 160), (3, 96, 64))]
    torch.save(inputs, tmp_path / 'in.pth')
    subprocess.run(
        [sys.executable, '-c', RUN, 'out.pt2', 'in.pth', 'found.pth'],
        cwd=tmp_path, check=True)
    for args, (dets, labels) in zip(
            inputs, torch.load(tmp_path / 'found.pth'), strict=True):
        with torch.no_grad():
            wanted, wanted_labels = Detections(model)(*args)
        assert (labels >= 0).any()
        assert labels.equal(wanted_labels)
        torch.testing.assert_close(dets, wanted, rtol=0, atol=1e-3)
