"""A detector that was exported finds what ``predict`` finds."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from mmdet.structures import DetDataSample

from frn_mmdet.errors import ConfigError
from frn_mmdet.export.onnx import export_onnx
from frn_mmdet.export.prepare import prepare
from frn_mmdet.export.retinanet import Detections

# Three levels: symbolic shapes are what an export takes its time for.
FEW = {
    'neck.num_outs': 3,
    'bbox_head.num_classes': 5,
    'bbox_head.stacked_convs': 1,
    'bbox_head.anchor_generator.strides': [8, 16, 32],
    'test_cfg.nms_pre': 200,
    'test_cfg.score_thr': 0.5,
}


@pytest.fixture
def detector(small):
    """detector(norm_cfg, options): as if trained, its scores are spread."""

    def _detector(norm_cfg='FRN', options=None):
        model = small('RetinaNet', norm_cfg, FEW | (options or {})).eval()
        random = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.2 * torch.randn(
                    parameter.shape, generator=random)
        head = model.bbox_head
        head.retina_cls.weight.data *= 4
        head.retina_reg.weight.data *= 10
        head.retina_cls.bias.data.fill_(-1.)
        return model

    return _detector


def batch(count, height, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, height, width, generator=random)
    sizes = [[height - 5 * i, width - 9 * i] for i in range(count)]
    return images, torch.tensor(sizes, dtype=torch.int64).view(count, 2)


def predict(model, images, sizes):
    samples = [DetDataSample(metainfo=dict(img_shape=tuple(size)))
               for size in sizes.tolist()]
    with torch.no_grad():
        samples = model.predict(images, samples, rescale=False)
    return [sample.pred_instances for sample in samples]


def assert_found(expected, dets, labels):
    """The same boxes in the same order."""
    assert len(expected) == len(dets) == len(labels)
    for wanted, det, label in zip(expected, dets, labels, strict=True):
        count = len(wanted)
        assert (label >= 0).sum() == count
        np.testing.assert_array_equal(label[:count], wanted.labels)
        np.testing.assert_allclose(det[:count, 4], wanted.scores, atol=1e-3)
        np.testing.assert_allclose(det[:count, :4], wanted.bboxes, atol=0.1)
        assert (det[count:] == 0).all() and (label[count:] == -1).all()


@pytest.mark.slow  # tests/tools/test_export.py has another export
def test_it_finds_in_onnxruntime_what_predict_does(detector, tmp_path):
    model = detector(dict(type='FRN', ws=True))
    before = copy.deepcopy(model.state_dict())
    export_onnx(model, tmp_path / 'out.onnx')
    after = model.state_dict()
    assert all(value.equal(after[key]) for key, value in before.items())

    session = onnxruntime.InferenceSession(tmp_path / 'out.onnx')
    for count, height, width in (1, 128, 160), (3, 100, 75), (0, 96, 128):
        images, sizes = batch(count, height, width)
        expected = predict(model, images, sizes)
        assert any(len(found) for found in expected) or not count
        dets, labels = session.run(
            None, dict(images=images.numpy(), sizes=sizes.numpy()))
        assert_found(expected, dets, labels)


@pytest.mark.parametrize('options', [
    {},
    {'test_cfg.max_per_img': 7},
    {'test_cfg.nms_pre': 10, 'test_cfg.score_thr': 0.},
    {'test_cfg.score_thr': 0.999},
    {'test_cfg.min_bbox_size': 20},
    {'test_cfg.nms.iou_threshold': 0.1, 'test_cfg.nms.class_agnostic': True},
    {'bbox_head.num_classes': 1},
    {'bbox_head.bbox_coder.clip_border': False},
    # every box is left of and above the image
    {'bbox_head.bbox_coder.clip_border': False,
     'bbox_head.bbox_coder.target_means': [-50., -50., 0., 0.]},
    {'bbox_head.anchor_generator.use_box_type': True},
    {'bbox_head.bbox_coder.add_ctr_clamp': True,
     'bbox_head.bbox_coder.ctr_clamp': 2},
    {'bbox_head.loss_cls':
        dict(_delete_=True, type='CrossEntropyLoss', use_sigmoid=False)},
], ids=str)
def test_it_does_as_the_config_says(detector, options):
    model = detector(options=options)
    images, sizes = batch(2, 96, 128)
    with torch.no_grad():
        dets, labels = Detections(model)(images, sizes)
    expected = predict(model, images, sizes)
    assert_found(expected, dets.numpy(), labels.numpy())


def test_without_score_thr_it_is_0_as_in_mmdet(detector):
    model = detector()
    del model.bbox_head.test_cfg.score_thr
    images, sizes = batch(1, 96, 128)
    with torch.no_grad():
        dets, labels = Detections(model)(images, sizes)
    assert_found(predict(model, images, sizes), dets.numpy(), labels.numpy())


def test_of_no_image_it_finds_nothing(detector):
    with torch.no_grad():
        dets, labels = Detections(detector())(*batch(0, 96, 128))
    assert dets.shape == (0, 100, 5) and labels.shape == (0, 100)


@pytest.mark.parametrize('options, words', [
    ({'test_cfg.nms_pre': -1}, 'test_cfg.nms_pre: -1'),
    ({'test_cfg.nms_pre': None}, 'test_cfg.nms_pre: None'),
    ({'test_cfg.max_per_img': None}, 'test_cfg.max_per_img: None'),
    ({'test_cfg.score_thr': '0.05'}, "test_cfg.score_thr: '0.05' is not a"),
    ({'test_cfg.min_bbox_size': None}, 'test_cfg.min_bbox_size: None is not'),
    ({'test_cfg.nms.iou_threshold': None}, 'nms.iou_threshold: None is not'),
    ({'test_cfg.nms': None}, 'test_cfg.nms: None is not exported'),
    ({'test_cfg': None}, 'test_cfg.nms_pre: None'),
    ({'test_cfg.nms.type': 'soft_nms'}, 'test_cfg.nms'),
    # from so many boxes on mmcv goes class by class all the same
    ({'test_cfg.nms.class_agnostic': True, 'test_cfg.nms.split_thr': 600},
     'class_agnostic: mmcv drops it from 600 .* there may be 600'),
    ({'bbox_head.bbox_coder.type': 'LegacyDeltaXYWHBBoxCoder'},
     'bbox_head.bbox_coder: LegacyDeltaXYWHBBoxCoder'),
])
def test_what_it_cannot_do_is_an_error(detector, options, words):
    with pytest.raises(ConfigError, match=words):
        Detections(detector(options=options))


def test_a_head_that_makes_more_than_scores_and_boxes_is_an_error(small):
    """Before an exporter words it: ATSS passes every look at its methods."""
    model = small('RetinaNet', options=FEW | {
        'bbox_head.type': 'ATSSHead',
        'bbox_head.anchor_generator.scales_per_octave': 1,
        'bbox_head.anchor_generator.ratios': [1.],
    }).eval()
    assert len(predict(model, *batch(1, 96, 128))) == 1  # mmdet runs it
    with pytest.raises(ConfigError, match='ATSSHead makes more than scores'):
        prepare(model, raw=False, fp16=False)


def test_a_detector_that_predicts_in_its_own_way_is_an_error(detector):
    model = detector()

    class Own(type(model)):

        def predict(self, *args, **kwargs):
            return []

    model.__class__ = Own
    with pytest.raises(ConfigError, match='model.type: Own predicts in a'):
        Detections(model)


def test_another_detector_is_an_error(small):
    model = small('MaskRCNN')
    with pytest.raises(ConfigError, match='model.type: MaskRCNN'):
        Detections(model)
