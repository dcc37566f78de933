# RetinaNet ResNet-101 FPN as in section 4.2 of the FRN paper. What the paper
# leaves open is decided here, mostly after the TensorFlow Object Detection
# API's RetinaNet, which it very likely ran; each decision says so.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    type='frn_mmdet.RetinaNet',
    norm_cfg=dict(type='FRN'),
    backbone=dict(
        depth=101,
        # Stated: trained from scratch, but for BN*.
        init_cfg=None,
        frozen_stages=-1,
        norm_eval=False),
    # Open: where the norm goes in the FPN. As in the API: on the 3x3
    # convolutions, not on the 1x1 laterals. The API also has an activation
    # on the 3x3; here there is none, as everywhere in mmdet.
    neck=dict(no_norm_on_lateral=True),
    bbox_head=dict(
        # Open: norms of the head. As in the API: convolutions shared by the
        # levels of the pyramid, norm parameters for each level.
        _delete_=True,
        type='RetinaSepBNHead',
        num_ins=5,
        num_classes=80,
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        # Open: anchors. As in the API: 2 scales an octave, 3 ratios.
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=2,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[.0, .0, .0, .0],
            target_stds=[1.0, 1.0, 1.0, 1.0]),
        # Open: losses. The focal loss is RetinaNet's and the API's; the box
        # loss is mmdet's.
        loss_cls=dict(
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)))
