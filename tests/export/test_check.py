"""How an exported file is compared with the detector that it was made of."""

import numpy as np
import pytest
from mmcv.transforms import Resize
from mmdet.datasets.transforms import LoadAnnotations
from mmengine.config import Config

from frn_mmdet.errors import ConfigError
from frn_mmdet.export.check import check_file, pipeline_of


def config_of(*steps):
    return Config(dict(test_dataloader=dict(
        dataset=dict(pipeline=list(steps)))))


@pytest.mark.parametrize('resize, annotations', [
    ('Resize', 'LoadAnnotations'), ('mmdet.Resize', 'mmdet.LoadAnnotations'),
    (Resize, LoadAnnotations)])
def test_the_configs_images_at_another_size(resize, annotations):
    """Names, with or without a scope, or classes, as configs may have."""
    config = config_of(dict(type=resize, scale=(64, 32), keep_ratio=True),
                       dict(type=annotations, with_bbox=True))
    image = dict(img=np.zeros((20, 40, 3), np.uint8))
    for size, shape in (None, (32, 64)), (80, (40, 80)):
        assert pipeline_of(config, size)(
            dict(image))['img'].shape[:2] == shape


def test_a_pipeline_without_resize_has_one_size():
    with pytest.raises(ConfigError, match='--sizes: the test pipeline has'):
        pipeline_of(config_of(dict(type='LoadAnnotations')), 64)


def test_another_detector_is_an_error(small, tmp_path):
    (tmp_path / 'it.onnx').touch()
    with pytest.raises(ConfigError, match='MaskRCNN is not exported'):
        check_file(small('MaskRCNN', None), tmp_path / 'it.onnx', tmp_path,
                   1, [None], [1], [])
