# A Mask R-CNN for studies of the batch size on a CPU: docs/studies. Few RoIs
# and convolutions, with norms in the box and mask heads.
_base_ = [
    '../_base_/models/mask-rcnn_r18_fpn_narrow.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/schedule_small_batch.py',
    '../_base_/default_runtime.py'
]

# Two thirds of a ResNet-18: its coarsest map is 8x8 at 128 pixels. Maps of 4x4
# and less put FRN at a disadvantage that images of 800 pixels never do.
model = dict(
    backbone=dict(
        stem_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2)),
    neck=dict(
        in_channels=[32, 64], out_channels=32, start_level=0, num_outs=2),
    rpn_head=dict(
        in_channels=32,
        feat_channels=32,
        anchor_generator=dict(ratios=[1.0], strides=[8, 16])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32, featmap_strides=[8, 16]),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=32,
            conv_out_channels=32,
            fc_out_channels=64),
        mask_roi_extractor=dict(out_channels=32, featmap_strides=[8, 16]),
        mask_head=dict(num_convs=2, in_channels=32, conv_out_channels=32)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=100, max_per_img=50),
        rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(
        rpn=dict(nms_pre=100, max_per_img=30), rcnn=dict(max_per_img=30)))

# Three epochs in place of five, since a step takes twice as long.
train_cfg = dict(max_epochs=3, val_interval=3)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        begin=0,
        end=1,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=1,
        end=3,
        T_max=2,
        convert_to_iter_based=True)
]
