# retinanet_r18_fpn_bccd.py on a pre-activation backbone. To start it from a
# classifier of single cells: docs/studies/imagenet_backbone.md.
_base_ = './retinanet_r18_fpn_bccd.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='frn_mmdet.ResNetV2',
        depth=18,
        base_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        out_indices=(1, 2)))
