# The RetinaNet of the studies of small batches.
_base_ = './retinanet_r18_fpn_narrow.py'

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
    bbox_head=dict(
        in_channels=32,
        feat_channels=32,
        anchor_generator=dict(ratios=[1.0], strides=[8, 16])))
