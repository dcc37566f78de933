# From scratch on 131 photographs, large objects of 256 pixels: docs/studies.
_base_ = [
    '../_base_/models/retinanet_r18_fpn_narrow.py',
    '../_base_/datasets/kangaroo_detection.py',
    '../_base_/schedules/schedule_small_batch.py',
    '../_base_/default_runtime.py'
]

model = dict(
    neck=dict(
        in_channels=[16, 32, 64, 128],
        out_channels=32,
        start_level=1,
        num_outs=3),
    bbox_head=dict(
        num_classes=1,
        in_channels=32,
        feat_channels=32,
        anchor_generator=dict(octave_base_scale=4, strides=[8, 16, 32])))

train_cfg = dict(max_epochs=30, val_interval=30)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=2,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0, begin=2, end=30, T_max=28,
         convert_to_iter_based=True)
]
