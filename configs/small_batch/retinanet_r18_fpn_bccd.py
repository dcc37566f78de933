# From scratch on blood smears, many small cells of 256 pixels: docs/studies.
_base_ = [
    '../_base_/models/retinanet_r18_fpn_shapes.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/schedule_small_batch.py',
    '../_base_/default_runtime.py'
]

# Two thirds of a ResNet-18: its coarsest map is 16x16.
model = dict(
    backbone=dict(
        stem_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2)),
    neck=dict(
        in_channels=[32, 64], out_channels=32, start_level=0, num_outs=2),
    bbox_head=dict(
        in_channels=32,
        feat_channels=32,
        anchor_generator=dict(ratios=[1.0], strides=[8, 16])))

train_cfg = dict(max_epochs=8, val_interval=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0, begin=1, end=8, T_max=7,
         convert_to_iter_based=True)
]
