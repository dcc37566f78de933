# A RetinaNet on a MobileNetV2 that starts from ImageNet, small enough for a
# CPU; its neck and head have no norm. The weights are those of
# .dev_scripts/study_pretrained.py, in the environment variable MOBILENET_V2.
_base_ = './retinanet_r18_fpn_narrow.py'

model = dict(
    norm_cfg=dict(
        _delete_=True, type='FRN', tlu=False, parts='backbone'),
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True),
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(2, 4, 6),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MOBILENET_V2:data/mobilenet_v2.pth}}')),
    neck=dict(in_channels=[32, 96, 320], start_level=0, num_outs=4),
    bbox_head=dict(
        num_classes=1,
        anchor_generator=dict(
            octave_base_scale=4, strides=[8, 16, 32, 64])))
