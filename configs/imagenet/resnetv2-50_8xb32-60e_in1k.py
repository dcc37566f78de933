_base_ = '../_base_/imagenet_classifier.py'

# Open: which ResNetV2-50; see the backbone's docstring. Weights start as
# He et al.'s, and no gamma at 0: behind a block's last convolution is no norm.
model = dict(
    backbone=dict(
        type='frn_mmdet.ResNetV2', depth=50, out_indices=(3, )),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))
