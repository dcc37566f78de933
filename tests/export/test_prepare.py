"""What a detector is made of before it leaves PyTorch."""

import keyword

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from frn_mmdet.export.prepare import prepare, rename_keywords
from frn_mmdet.models import ResNetV2


def test_no_norm_is_called_as_a_keyword_is():
    norm = dict(type='IN')
    model = nn.Sequential(
        ConvModule(3, 3, 1, norm_cfg=norm),
        ResNetV2(18, base_channels=8, norm_cfg=norm)).eval()
    x = torch.randn(1, 3, 64, 96)
    before = model(x)
    assert 'in' in dict(model[1].named_children())
    rename_keywords(model)
    assert not [name for path, _ in model.named_modules()
                for name in path.split('.') if keyword.iskeyword(name)]
    for a, b in zip(before, model(x), strict=True):
        assert a.equal(b)


@pytest.mark.parametrize('raw', [False, True])
def test_images_have_the_channels_that_the_detector_takes(small, raw):
    model = small('RetinaNet', options={
        'backbone.in_channels': 1,
        'data_preprocessor.mean': [0.],
        'data_preprocessor.std': [1.],
    })
    prepared = prepare(model, raw, fp16=False)
    assert prepared.args['images'].shape[1] == 1
    assert ('labels' in prepared.outputs) is not raw
