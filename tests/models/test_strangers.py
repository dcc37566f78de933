"""Detectors with traits of those in other people's repositories.

Each is built with one line of NormSwitch, trained for two steps, tested.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, Swish, build_norm_layer
from mmcv.ops import RoIAlign
from mmdet.models import RetinaHead, SingleStageDetector
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi
from mmdet.testing import demo_mm_inputs
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from frn_mmdet import norm_sites
from frn_mmdet.errors import ConfigError
from frn_mmdet.models import NormSwitch
from frn_mmdet.switch.small_run import flow_of

R18 = dict(type='ResNet', depth=18, base_channels=4)
FPN = dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, num_outs=5)
IMAGES = dict(type='DetDataPreprocessor', pad_mask=True)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')
    torch.manual_seed(0)


def two_steps(model, channels=3, size=64, **kwargs):
    """The losses of two training steps, and what a test gives."""
    optimizer = build_optim_wrapper(model, dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-3)))
    model.train()
    losses = []
    for _ in range(2):
        data = demo_mm_inputs(2, [(channels, size, size)] * 2, num_classes=2,
                              num_items=[2, 2], **kwargs)
        losses += model.train_step(data, optimizer).values()
    assert all(loss.isfinite().all() for loss in losses)
    model.eval()
    results = model.test_step(data)
    assert all('pred_instances' in result for result in results)


def counts(model):
    sites = norm_sites(model)
    return (sum(s.norm == 'FRN' for s in sites),
            sum(s.activation == 'TLU' for s in sites),
            {s.norm for s in sites} - {'FRN', None})


class BoxesToo(nn.Module):
    """As DiffusionDet's: nothing runs it on features alone."""

    def __init__(self, train_cfg=None, test_cfg=None, norm_cfg=None):
        super().__init__()
        self.roi_layer = RoIAlign(7, 1 / 4)
        self.conv = ConvModule(8, 8, 3, norm_cfg=norm_cfg)
        self.time = nn.Linear(1, 8)
        self.fc = nn.Linear(8, 6)

    def forward(self, features, boxes, time):
        x = self.conv(self.roi_layer(features[0], bbox2roi(boxes)))
        return self.fc(x.mean((2, 3)) + self.time(time))

    def loss(self, x, samples):
        boxes = [sample.gt_instances.bboxes for sample in samples]
        out = self(x, boxes, x[0].new_ones(1, 1))
        return dict(loss_cls=out[:, :2].square().mean(),
                    loss_bbox=out[:, 2:].abs().mean())

    def predict(self, x, samples, rescale=True):
        box = x[0].new_tensor([[0, 0, 9, 9]])
        out = self(x, [box] * len(samples), x[0].new_zeros(1, 1))
        return [InstanceData(bboxes=row[None, 2:], scores=row[:1],
                             labels=row.new_zeros(1, dtype=torch.long))
                for row in out.sigmoid()]


class Diffusion(SingleStageDetector):

    def __init__(self, bbox_head, **kwargs):
        super().__init__(bbox_head=bbox_head, **kwargs)


class OnlyPredicts(Diffusion):
    """What it gives as mode='tensor' are its features."""

    def _forward(self, batch_inputs, batch_data_samples=None):
        return self.extract_feat(batch_inputs)


class OnlyLearns(Diffusion):
    """It cannot be tested on what it has not been trained for."""

    def predict(self, batch_inputs, batch_data_samples, rescale=True):
        raise KeyError('calibration')


class Nothing(Diffusion):

    def _forward(self, batch_inputs, batch_data_samples=None):
        pass


def with_boxes(cls, norm_cfg, parts=None):
    switched = type(f'Switched{cls.__name__}', (NormSwitch, cls), {})
    MODELS.register_module('BoxesToo', module=BoxesToo, force=True)
    return switched(
        norm_cfg=norm_cfg, backbone=dict(R18), neck=dict(FPN),
        bbox_head=dict(type='BoxesToo', norm_cfg=dict(type='BN')),
        data_preprocessor=IMAGES)


@pytest.mark.parametrize('cls', [Diffusion, OnlyPredicts, Nothing])
def test_a_head_that_needs_more_than_features(cls):
    model = with_boxes(cls, 'FRN')
    # The FPN has no activation, and three stages a shortcut.
    assert counts(model) == (20 + 8 + 1, 1 + 8 + 8 + 1, set())
    two_steps(model)
    parts = with_boxes(cls, dict(type='FRN', parts='backbone'))
    assert counts(parts) == (20, 17, {'BN'})


def test_one_that_can_only_be_trained():
    assert counts(with_boxes(OnlyLearns, 'FRN')) == (29, 18, set())


def test_what_fails_is_said_in_the_words_of_what_users_run():

    class Fails(OnlyLearns):

        def loss(self, batch_inputs, batch_data_samples):
            raise KeyError('depth')

    with pytest.raises(ConfigError, match="KeyError: 'calibration'"):
        with_boxes(Fails, 'FRN')


@torch.jit.script
def rescored(scores, masks):
    return scores * masks.sum([1, 2]) / (masks.sum([1, 2]) + 1e-6)


class Pooled(nn.Module):
    """An encoder: pyramid pooling, and one activation for all of it."""

    def __init__(self, norm_cfg=None):
        super().__init__()
        self.laterals = nn.ModuleList(
            ConvModule(c, 8, 1, norm_cfg=norm_cfg, act_cfg=None)
            for c in (32, 16, 8))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2),
                                  nn.Conv2d(8, 8, 1))
        self.fusion = nn.Conv2d(24, 8, 1)
        self.act = nn.ReLU()

    def forward(self, maps):
        outs = []
        for x, lateral in zip(maps[::-1], self.laterals, strict=True):
            x = lateral(x)
            if outs:
                x = x + F.interpolate(outs[-1], scale_factor=2.)
            else:
                x = x + F.interpolate(self.act(self.pool(x)), x.shape[2:])
            outs.append(x)
        size = outs[-1].shape[2:]
        return self.fusion(torch.cat([F.interpolate(
            x, size, mode='bilinear') for x in outs], 1))


class Masks(nn.Module):
    """A decoder: masks by products, no boxes."""

    def __init__(self, norm_cfg=None):
        super().__init__()
        self.conv = ConvModule(10, 8, 3, padding=1, norm_cfg=norm_cfg,
                               inplace=True)
        self.maps = nn.Conv2d(8, 5, 3, padding=1)
        self.score = nn.Linear(8, 2)

    def forward(self, x):
        n, _, h, w = x.shape
        y, x_ = torch.meshgrid(torch.linspace(-1, 1, h),
                               torch.linspace(-1, 1, w), indexing='ij')
        x = self.conv(torch.cat([torch.stack([x_, y]).expand(n, 2, h, w), x],
                                1))
        maps = self.maps(x)
        weight = maps.sigmoid().view(n, 5, -1)
        weight = weight / weight.sum(-1).clamp(min=1e-6)[..., None]
        instances = weight @ x.flatten(2).transpose(1, 2)
        return dict(logits=self.score(instances), masks=F.interpolate(
            maps, scale_factor=2., mode='bilinear'))


class Instances(BaseDetector):
    """As SparseInst: its own parts under its own names."""

    def __init__(self, backbone, encoder, decoder, test_cfg=None,
                 data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.encoder = MODELS.build(encoder)
        self.decoder = MODELS.build(decoder)
        self.threshold = test_cfg.score_thr

    def extract_feat(self, batch_inputs):
        return self.encoder(self.backbone(batch_inputs))

    def _forward(self, batch_inputs, batch_data_samples=None):
        return self.decoder(self.extract_feat(batch_inputs))

    def loss(self, batch_inputs, batch_data_samples):
        out = self._forward(batch_inputs)
        masks = torch.stack([
            sample.gt_instances.masks.to_tensor(
                torch.float, batch_inputs.device).amax(0)
            for sample in batch_data_samples])
        masks = F.interpolate(masks[:, None], out['masks'].shape[2:])
        return dict(
            loss_cls=out['logits'].square().mean(),
            loss_mask=F.binary_cross_entropy_with_logits(
                out['masks'], masks.expand_as(out['masks'])))

    def predict(self, batch_inputs, batch_data_samples, rescale=True):
        out = self._forward(batch_inputs)
        results = []
        for logits, masks in zip(out['logits'].sigmoid(),
                                 out['masks'].sigmoid(), strict=True):
            scores, labels = logits.max(-1)
            keep = scores > self.threshold
            results.append(InstanceData(
                scores=rescored(scores[keep], masks[keep]),
                labels=labels[keep], masks=masks[keep] > .5))
        return self.add_pred_to_datasample(batch_data_samples, results)


@MODELS.register_module()
class SwitchedInstances(NormSwitch, Instances):
    pass


def test_parts_of_other_names():
    for cls in (Pooled, Masks):
        MODELS.register_module(module=cls, force=True)
    cfg = dict(
        type='SwitchedInstances', norm_cfg='FRN', encoder=dict(type='Pooled'),
        decoder=dict(type='Masks'), test_cfg=dict(score_thr=.1),
        data_preprocessor=IMAGES,
        backbone=dict(R18, out_indices=(1, 2, 3), frozen_stages=0,
                      norm_cfg=dict(type='BN', requires_grad=False)))
    model = MODELS.build(ConfigDict(cfg))
    assert counts(model) == (20 + 3 + 1, 17 + 1, set())
    assert type(model.encoder.act) is nn.ReLU  # behind a convolution only
    two_steps(model, with_mask=True)


class SamePadding(nn.Conv2d):
    """As TensorFlow pads; a class of its own."""

    def forward(self, x):
        pads = []
        for size, kernel, step in zip(x.shape[:1:-1], self.weight.shape[:1:-1],
                                      self.stride[::-1], strict=True):
            more = max((math.ceil(size / step) - 1) * step + kernel - size, 0)
            pads += [more // 2, more - more // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride,
                        0, 1, self.groups)


class Weighted(nn.Module):
    """A neck: sums with weights that pass a ReLU, then Swish, conv, norm."""

    def __init__(self, norm_cfg=None, act='Swish'):
        super().__init__()
        self.down = nn.ModuleList(SamePadding(c, 8, 1) for c in (8, 16, 32))
        self.norms = nn.ModuleList(
            build_norm_layer(norm_cfg, 8)[1] for _ in range(4))
        self.out = nn.Sequential(SamePadding(8, 8, 3, groups=8, bias=False),
                                 SamePadding(8, 8, 1))
        self.pool = nn.MaxPool2d(3, 2)
        self.weight = nn.Parameter(torch.ones(2))
        self.weight_relu = nn.ReLU()
        self.act = MODELS.build(dict(type=act))

    def forward(self, maps):
        maps = [norm(down(x)) for x, down, norm in zip(
            maps, self.down, self.norms[:3], strict=True)]
        weight = self.weight_relu(self.weight)
        weight = weight / (weight.sum() + 1e-4)
        x = weight[0] * maps[1] + weight[1] * F.interpolate(
            maps[2], scale_factor=2.)
        y = self.norms[3](self.out(self.act(x)))
        return maps[0], y, maps[2], self.pool(F.pad(maps[2], (0, 1, 0, 1)))


class NormForEach(RetinaHead):
    """Convolutions that the levels share, and a norm for each."""

    def _init_layers(self):
        self.convs = nn.ModuleList(
            SamePadding(8, 8, 3) for _ in range(self.stacked_convs))
        self.norms = nn.ModuleList(nn.ModuleList(
            build_norm_layer(self.norm_cfg, 8)[1] for _ in range(4))
            for _ in range(self.stacked_convs))
        self.act = Swish()
        self.cls = nn.Conv2d(8, self.num_base_priors * self.cls_out_channels,
                             3, padding=1)
        self.reg = nn.Conv2d(8, self.num_base_priors * 4, 3, padding=1)

    def forward(self, feats):
        outs = []
        for level, x in enumerate(feats):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                x = self.act(norms[level](conv(x)))
            outs.append((self.cls(x), self.reg(x)))
        return tuple(map(list, zip(*outs, strict=True)))


def efficient(norm_cfg):
    MODELS.register_module('SamePadding', module=SamePadding, force=True)
    MODELS.register_module('Weighted', module=Weighted, force=True)
    MODELS.register_module('NormForEach', module=NormForEach, force=True)
    cls = type('Efficient', (NormSwitch, SingleStageDetector), {})
    head = dict(
        type='NormForEach', num_classes=2, in_channels=8, feat_channels=8,
        stacked_convs=2, norm_cfg=dict(type='BN', eps=1e-3),
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1,
            ratios=[1.], strides=[8, 16, 32, 64]))
    return cls(
        norm_cfg=norm_cfg, bbox_head=head, data_preprocessor=IMAGES,
        backbone=dict(R18, out_indices=(1, 2, 3),
                      conv_cfg=dict(type='SamePadding')),
        neck=dict(type='Weighted', norm_cfg=dict(type='BN', eps=1e-3)),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=.5,
                          neg_iou_thr=.4, min_pos_iou=0),
            sampler=dict(type='PseudoSampler'), allowed_border=-1,
            pos_weight=-1, debug=False),
        test_cfg=ConfigDict(nms_pre=100, score_thr=.05, max_per_img=10,
                            nms=dict(type='nms', iou_threshold=.5)))


def test_norms_before_swish():
    with pytest.raises(ConfigError, match=(
            'neck.act: Swish acts on neck.norms.1 .*tlu=False')):
        efficient('FRN')
    for norm_cfg, switched in (
            (dict(type='GN', num_groups=4), 'GN'),
            (dict(type='FRN', tlu=False), 'FRN'),
            (dict(type='FRN', parts='backbone'), 'FRN')):
        model = efficient(norm_cfg)
        names = [s.norm for s in norm_sites(model) if s.norm]
        assert len(names) == 20 + 4 + 8
        assert names.count(switched) == (
            20 if 'parts' in norm_cfg else len(names))
        two_steps(model)


@pytest.mark.parametrize('channels, mean', [
    (1, [127.]), (1, None), (3, [127.]), (3, None), (4, None), (5, None)])
@pytest.mark.parametrize('backbone', ['ResNet', 'frn_mmdet.ResNetV2'])
def test_images_of_any_channels(small, backbone, channels, mean):
    """Thermal, RGB-D, multispectral; mmdet takes means for 1 and 3."""
    model = small('RetinaNet', options={
        'backbone': dict(_delete_=True, type=backbone, depth=18,
                         base_channels=8, in_channels=channels),
        'bbox_head.num_classes': 2,
        'data_preprocessor': dict(IMAGES, _delete_=True, mean=mean,
                                  std=mean)})
    assert counts(model)[0] == (20 if backbone == 'ResNet' else 17) + 8 + 4
    two_steps(model, channels)


@pytest.mark.parametrize('channels', [3, 4])
def test_a_stem_that_takes_four_pixels_for_one(small, channels):
    """YOLOX's: the first convolution has four times the image's channels."""
    model = small('RetinaNet', None, {
        'backbone': dict(
            _delete_=True, type='CSPDarknet', widen_factor=.125,
            deepen_factor=.33, out_indices=(1, 2, 3, 4)),
        'neck.in_channels': [16, 32, 64, 128]})
    stem = model.backbone.stem.conv
    assert stem.conv.in_channels == 12
    stem.conv = nn.Conv2d(4 * channels, 8, 3, padding=1)
    if channels == 4:
        model.data_preprocessor.mean = torch.zeros(4, 1, 1)
    assert '?' not in {s.activation for s in norm_sites(model)}


class Streams(nn.Module):
    """RGB and depth, each by its own stem."""

    def __init__(self, in_channels=4, norm_cfg=None):
        super().__init__()
        self.in_channels = in_channels
        self.rgb = ConvModule(3, 4, 3, stride=4, norm_cfg=norm_cfg)
        self.depth = ConvModule(in_channels - 3, 4, 3, stride=4,
                                norm_cfg=norm_cfg)

    def forward(self, x):
        return (self.rgb(x[:, :3]) + self.depth(x[:, 3:]), )


def test_images_of_two_streams(small):
    MODELS.register_module('Streams', module=Streams, force=True)
    model = small('RetinaNet', options={
        'backbone': dict(_delete_=True, type='Streams'),
        'neck.in_channels': [4],
        'bbox_head.num_classes': 2,
        'data_preprocessor': dict(IMAGES, _delete_=True)})
    assert counts(model)[1:] == (2 + 4, set())
    two_steps(model, 4)


class OneSize(nn.Module):
    """A neck of a discrete cosine transform, for images of one size."""

    def __init__(self, size, norm_cfg=None):
        super().__init__()
        self.in_channels = 4
        self.register_buffer('matrix', torch.eye(size // 4))
        self.conv = ConvModule(4, 4, 1, norm_cfg=norm_cfg)

    def forward(self, maps):
        x = maps if isinstance(maps, torch.Tensor) else maps[0]
        x = self.conv(self.matrix @ x @ self.matrix.T)
        return (F.max_pool2d(x, 4), )


@pytest.mark.parametrize('size', [256, 640, 1024])
def test_a_module_for_one_size(small, size):
    MODELS.register_module('OneSize', module=OneSize, force=True)
    model = small('RetinaNet', options={
        'backbone.base_channels': 4,
        'backbone.out_indices': (0, ),
        'neck': dict(_delete_=True, type='OneSize', size=size),
        'bbox_head.in_channels': 4,
        'bbox_head.num_classes': 2,
        'bbox_head.anchor_generator.strides': [16]})
    assert counts(model) == (20 + 1 + 4, 17 + 1 + 4, set())
    two_steps(model, size=size)


def test_a_neck_for_one_size_on_its_own():
    flow = flow_of(OneSize(1024, dict(type='FRN')))
    assert flow.failures == []
    assert flow.norms['conv.frn'].shape == (1, 4, 256, 256)
