# What the detectors of the small-batch study share: two thirds of a ResNet-18.
# Its coarsest map is 8x8 at 128 pixels. Maps of 4x4 and less put FRN at a
# disadvantage that a detector's images of 800 pixels never do.
model = dict(
    norm_cfg=dict(type='FRN'),
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[50., 50., 50.],
        pad_size_divisor=32),
    backbone=dict(
        type='ResNet',
        depth=18,
        stem_channels=16,
        base_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2)),
    neck=dict(
        type='FPN', in_channels=[32, 64], out_channels=32, num_outs=2))
