"""How an exported file is compared with the detector that it was made of."""

import numpy as np
import pytest
import torch
from mmcv.transforms import Resize
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.structures import DetDataSample
from mmengine.config import Config

from frn_mmdet.errors import ConfigError
from frn_mmdet.export.check import check_file, parts_of, pipeline_of


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


@pytest.mark.parametrize('norm_cfg, parts', [
    ('FRN', [([0, 2], (32, 64)), ([1], (64, 32))]),
    (dict(type='FRN', own_area=False), [([0, 1, 2], (64, 64))]),
    (None, [([0, 1, 2], (64, 64))])])
def test_a_file_gets_a_batch_as_the_detector_runs_it(small, norm_cfg, parts):
    """Images of each shape by themselves, if the detector does so."""
    shapes = (32, 64), (64, 32), (32, 64)
    batch = torch.arange(3. * 64 * 64).reshape(3, 1, 64, 64)
    samples = [DetDataSample(metainfo=dict(pad_shape=s)) for s in shapes]
    found = parts_of(small('RetinaNet', norm_cfg), batch, samples)
    assert [(numbers, images.shape[2:]) for numbers, images in found] == parts
    for numbers, images in found:
        height, width = images.shape[2:]
        assert torch.equal(images, batch[numbers][..., :height, :width])
