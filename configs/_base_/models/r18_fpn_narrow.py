# What the small detectors of the generated shapes share.
model = dict(
    norm_cfg=dict(type='FRN'),
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[50., 50., 50.],
        pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18, base_channels=16),
    neck=dict(
        type='FPN',
        in_channels=[16, 32, 64, 128],
        out_channels=64,
        start_level=1,
        num_outs=3))
