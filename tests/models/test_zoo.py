"""One config of each backbone, neck and head class of mmdet that has norms.

Under `make test` a few; all of them under `make test-slow`.
"""

import copy
import random
import re
from pathlib import Path

import check_configs
import check_zoo
import mmdet
import numpy as np
import pytest
import shrink_config
import torch
from autograd_graph import clips_behind, outputs_of, total
from mmdet.models.backbones.trident_resnet import TridentConv
from mmdet.models.detectors import SparseRCNN
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

ZOO = Path(mmdet.__file__).parent / '.mim' / 'configs'
MASK = dict(with_mask=True)
PANOPTIC = dict(with_mask=True, with_semantic=True)
# Of a neck's or head's config, whose backbone is that of others, too.
R18 = {'backbone.depth': 18, 'neck.in_channels': [64, 128, 256, 512]}
# What the images of a step need beside boxes; size: of the image, in pixels;
# loss: False where it needs scikit-learn, a teacher, or a hook that counts
# epochs; options: what in the model's config only runs on a GPU, or elsewhere.
CONFIGS = {
    # backbones
    'regnet/retinanet_regnetx-800MF_fpn_1x_coco': {},
    'hrnet/faster-rcnn_hrnetv2p-w18-1x_coco': dict(options={
        f'backbone.extra.stage{i}.num_modules': 1 for i in (3, 4)}),
    'res2net/faster-rcnn_res2net-101_fpn_2x_coco': dict(
        options={'backbone.depth': 50}),
    'resnest/mask-rcnn_s50_fpn_syncbn-backbone+head_ms-1x_coco': dict(
        MASK, options=R18 | {'backbone.depth': 50,
                             'backbone.base_channels': 16}),
    'detectors/detectors_cascade-rcnn_r50_1x_coco': {},
    'retinanet/retinanet_x101-32x4d_fpn_1x_coco': {},
    'ssd/ssd300_coco': dict(size=512),
    'tridentnet/tridentnet_r50-caffe_1x_coco': dict(size=256),
    'cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco': dict(size=511),
    'gcnet/mask-rcnn_r50-gcb-r4-c3-c5_fpn_1x_coco': MASK,
    'swin/retinanet_swin-t-p4-w7_fpn_1x_coco': {},
    'pvt/retinanet_pvt-t_fpn_1x_coco': {},
    # necks
    'nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco': dict(size=256),
    'nas_fpn/retinanet_r50_fpn_crop640-50e_coco': dict(size=256),
    'nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco': {},
    'pafpn/faster-rcnn_r50_pafpn_1x_coco': dict(options=R18),
    'carafe/mask-rcnn_r50_fpn-carafe_1x_coco': dict(MASK, options={
        'neck.upsample_cfg': dict(_delete_=True, type='nearest'),
        'roi_head.mask_head.upsample_cfg': dict(
            _delete_=True, type='deconv', scale_factor=2)}),
    'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco': {},
    'fpg/retinanet_r50_fpg_crop640_50e_coco': dict(size=256),
    'dyhead/atss_r50_fpn_dyhead_1x_coco': {},
    'yolof/yolof_r50-c5_8xb8-1x_coco': dict(
        options=R18 | {'neck.in_channels': 512}),
    'centernet/centernet_r18_8xb16-crop512-140e_coco': {},
    # dense heads
    'atss/atss_r50_fpn_1x_coco': {},
    'autoassign/autoassign_r50-caffe_fpn_1x_coco': {},
    'centernet/centernet-update_r50-caffe_fpn_ms-1x_coco': {},
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance': MASK,
    'boxinst/boxinst_r50_fpn_ms-90k_coco': dict(MASK, loss=False, options={
        'data_preprocessor': dict(_delete_=True, type='DetDataPreprocessor')
    }),
    'ddod/ddod_r50_fpn_1x_coco': dict(size=512),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': dict(options=R18),
    'foveabox/fovea_r50_fpn_gn-head-align_4xb4-2x_coco': {},
    'fsaf/fsaf_r50_fpn_1x_coco': {},
    'gfl/gfl_r50_fpn_1x_coco': {},
    'free_anchor/freeanchor_r50_fpn_1x_coco': {},
    'guided_anchoring/ga-retinanet_r50_fpn_1x_coco': {},
    'lad/lad_r50-paa-r101_fpn_2xb8_coco_1x': dict(
        loss=False, options={'teacher_ckpt': None}),
    'ld/ld_r18-gflv1-r101_fpn_1x_coco': dict(loss=False, options={
        'teacher_ckpt': None,
        'teacher_config': f'{ZOO}/gfl/gfl_r50_fpn_1x_coco.py'}),
    'paa/paa_r50_fpn_1x_coco': dict(loss=False),
    'pisa/retinanet-r50_fpn_pisa_1x_coco': {},
    'reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco': {},
    'sabl/sabl-retinanet_r50_fpn_1x_coco': {},
    'solo/solo_r50_fpn_1x_coco': MASK,
    'solo/decoupled-solo_r50_fpn_1x_coco': MASK,
    'solo/decoupled-solo-light_r50_fpn_3x_coco': MASK,
    'solov2/solov2_r50_fpn_1x_coco': MASK,
    'tood/tood_r50_fpn_1x_coco': dict(loss=False),
    'vfnet/vfnet_r50_fpn_1x_coco': {},
    'yolact/yolact_r50_1xb8-55e_coco': MASK,
    # RoI heads and the detectors around them
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco': MASK,
    'double_heads/dh-faster-rcnn_r50_fpn_1x_coco': {},
    'fast_rcnn/fast-rcnn_r50_fpn_1x_coco': {},
    'faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco': {},
    'gn/mask-rcnn_r50_fpn_gn-all_2x_coco': MASK,
    'grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco': {},
    'groie/faste-rcnn_r50_fpn_groie_1x_coco': {},
    'htc/htc_r50_fpn_1x_coco': PANOPTIC,
    'ms_rcnn/ms-rcnn_r50_fpn_1x_coco': dict(MASK, options=R18),
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco': PANOPTIC,
    'pisa/mask-rcnn_r50_fpn_pisa_1x_coco': MASK,
    'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco': MASK,
    'queryinst/queryinst_r50_fpn_1x_coco': MASK,
    'rpn/rpn_r50_fpn_1x_coco': {},
    'sabl/sabl-faster-rcnn_r50_fpn_1x_coco': {},
    'scnet/scnet_r50_fpn_1x_coco': PANOPTIC,
    'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco': {},
    # transformers
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco': {},
    'detr/detr_r50_8xb2-150e_coco': {},
    'dino/dino-4scale_r50_8xb2-12e_coco': dict(size=256),
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco': MASK,
    'maskformer/maskformer_r50_ms-16xb1-75e_coco': PANOPTIC,
}
QUICK = ('regnet', 'hrnet/faster', 'res2net', 'resnest', 'pafpn', 'yolof',
         'fcos/', 'ms_rcnn', 'swin')


@pytest.mark.parametrize('config', [
    pytest.param(name, marks=() if name.startswith(QUICK)
                 else pytest.mark.slow) for name in CONFIGS
])
def test_every_class_with_a_norm(build, stock, config):
    """A real step: no ReLU behind an FRN or TLU, and every threshold learns.

    At thresholds of 0 the losses are those of the same weights with ReLU, to
    the last bit.
    """
    path = f'mmdet::{config}.py'
    needs = dict(CONFIGS[config])
    options = _from_scratch(stock(path).model) | needs.pop('options', {})
    relu = build(path, dict(type='FRN', tlu=False), options)
    model = build(path, 'FRN', options)
    relu.train()  # which gives nothing back where there is a teacher
    model.train()
    _init_what_starts_as_nothing(relu)
    for name in model.switch_outcome.stayed:  # with ReLU nothing must stay
        relu.set_submodule(name, copy.deepcopy(model.get_submodule(name)))
    state = relu.state_dict()
    taus = {n: p for n, p in model.named_parameters() if n.endswith('tau')}
    model.load_state_dict(state)  # it says that it is of ReLUs
    with outputs_of(relu) as nodes:
        expected = _loss(relu, **needs)
    if taus:
        assert clips_behind(expected, nodes)  # it looks in earnest
    assert torch.equal(_loss(model, **needs), expected)
    for tau in taus.values():
        nn.init.constant_(tau, -.3)
    with outputs_of(model) as nodes:
        loss = _loss(model, **needs) + _outputs(model, **needs)
    assert clips_behind(loss, nodes) == []
    loss.backward()
    dead = [n for n, tau in taus.items()
            if tau.grad is None or not tau.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.slow
@pytest.mark.parametrize('config', CONFIGS)
def test_other_norms_build(config):
    init_default_scope('mmdet')
    for norm in ('GN:num_groups=2', 'BN', 'SyncBN', 'LN'):
        model = Config.fromfile(f'{ZOO}/{config}.py').model
        model.update({key: value for key, value in CONFIGS[config].get(
            'options', {}).items() if key == 'teacher_config'})
        row = check_zoo.switch(model, norm)
        assert row['result'].startswith('switched'), (norm, row)
        assert row['norms'] > 0


# One of a family, by the rest of its model's config.
FAMILIES = {
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco': {},
    'cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco': {},
    'detectors/cascade-rcnn_r50-rfp_1x_coco': dict(
        neck=dict(rfp_backbone=dict(pretrained=None))),
    'detr/detr_r50_8xb2-150e_coco': {},
    'double_heads/dh-faster-rcnn_r50_fpn_1x_coco': {},
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco': {},
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': {},
    'fpg/retinanet_r50_fpg_crop640_50e_coco': {},
    'grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco': {},
    'hrnet/mask-rcnn_hrnetv2p-w18-1x_coco': {},
    'htc/htc-without-semantic_r50_fpn_1x_coco': {},
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco': {},
    'nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco': {},
    'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco': {},
    'regnet/retinanet_regnetx-800MF_fpn_1x_coco': {},
    'res2net/faster-rcnn_res2net-101_fpn_2x_coco': {},
    'resnest/mask-rcnn_s50_fpn_syncbn-backbone+head_ms-1x_coco': {},
    'retinanet/retinanet_r50_fpn_1x_coco': {},
    'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco': {},
    'swin/retinanet_swin-t-p4-w7_fpn_1x_coco': {},
    'vfnet/vfnet_r50_fpn_1x_coco': {},
    'yolof/yolof_r50-c5_8xb8-1x_coco': {},
}


@pytest.mark.slow
@pytest.mark.parametrize('config', FAMILIES)
def test_two_steps_and_an_evaluation(stock, config, tmp_path):
    """By mmdet's runner, on generated images."""
    shrink_config.make_shapes(tmp_path)
    path = tmp_path / 'coco.py'
    model = dict(FAMILIES[config], norm_cfg=dict(type='FRN'),
                 type=f'frn_mmdet.{stock(f"mmdet::{config}.py").model.type}')
    path.write_text(f"_base_ = 'mmdet::{config}.py'\nmodel = {model}\n")
    assert check_configs.run(path, tmp_path).startswith('loss ')


def _from_scratch(model):
    """Nothing is loaded, and so nothing frozen; of RoIs a few will do."""
    options = {}
    rcnn = (model.get('train_cfg') or {}).get('rcnn')
    if isinstance(rcnn, dict) and 'sampler' in rcnn:
        options['train_cfg.rcnn.sampler.num'] = 32
    for key, part in (('backbone', model.backbone),
                      ('neck.rfp_backbone',
                       (model.get('neck') or {}).get('rfp_backbone')
                       if isinstance(model.get('neck'), dict) else None)):
        if part is None:
            continue
        options[f'{key}.init_cfg'] = None
        if 'pretrained' in part:
            options[f'{key}.pretrained'] = None
        if 'frozen_stages' in part:
            options[f'{key}.frozen_stages'] = -1
    return options


def _init_what_starts_as_nothing(model):
    if isinstance(model, SparseRCNN):
        model.rpn_head.init_weights()
    for module in model.modules():
        if isinstance(module, TridentConv):
            nn.init.kaiming_uniform_(module.weight)


def _batch(model, size=128, loss=True, **needs):
    _seed()
    data = demo_mm_inputs(1, [(3, size, size)], num_items=[4], num_classes=10,
                          **needs)
    for sample in data['data_samples']:  # for Fast R-CNN
        sample.proposals = InstanceData(
            bboxes=sample.gt_instances.bboxes.clone())
    return model.data_preprocessor(data, True)


def _loss(model, **needs):
    data = _batch(model, **needs)
    _seed()
    if not needs.get('loss', True):
        return total(model(**data, mode='tensor'))
    return model.parse_losses(model.forward(**data, mode='loss'))[0]


def _outputs(model, **needs):
    """Of a dense head: not each of its levels has an object to learn from."""
    if not re.search('Retina|ATSS|NASFCOS|SingleStageDetector',
                     type(model).__name__):
        return 0.
    data = _batch(model, **needs)
    return total(model.bbox_head(model.extract_feat(data['inputs'])))


def _seed():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
