"""The maps of a dense head, by name."""

import pytest
import torch

from frn_mmdet.errors import ConfigError
from frn_mmdet.export.raw import RawMaps

FCOS = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
VFNET = 'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py'


def outputs(model):
    with torch.no_grad():
        return RawMaps(model.eval())(torch.zeros(1, 3, 64, 64))


def levels(*names):
    return [f'{name}_{level}' for name in names for level in range(5)]


def test_two_stages_give_the_neck_and_the_rpn(small):
    model = small('MaskRCNN')
    maps = outputs(model)
    assert list(maps) == levels('neck', 'rpn_cls_scores', 'rpn_bbox_preds')
    with torch.no_grad():
        feats = model.extract_feat(torch.zeros(1, 3, 64, 64))
        _, boxes = model.rpn_head(feats)
    assert maps['neck_1'].equal(feats[1])
    assert maps['rpn_bbox_preds_3'].equal(boxes[3])


@pytest.mark.parametrize('name, kinds', [
    (FCOS, ('cls_scores', 'bbox_preds', 'centernesses')),
    (VFNET, ('cls_scores', 'bbox_preds')),  # in training there are three
])
def test_maps_have_mmdets_names(build, name, kinds):
    assert list(outputs(build(name, None, OPTIONS))) == levels(*kinds)


def test_a_norm_of_each_level_is_its_own_in_the_maps(small):
    model = small('FCOS', 'BN', {'bbox_head.stacked_convs': 1}).eval()
    before = outputs(model)
    torch.nn.init.constant_(model.bbox_head.cls_convs[0].bn[3].bias, 9.)
    after = outputs(model)
    assert [name for name in before if not after[name].equal(before[name])
            ] == ['cls_scores_3', 'centernesses_3']


OPTIONS = {
    'backbone.depth': 18,
    'backbone.init_cfg': None,
    'neck.in_channels': [64, 128, 256, 512],
}


def test_without_a_dense_head_it_is_an_error(build):
    model = torch.nn.Identity()
    with pytest.raises(ConfigError, match='Identity has no dense'):
        RawMaps(model)
