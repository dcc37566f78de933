# FRN everywhere, from an ImageNet checkpoint of the paper's own backbone:
# what configs/imagenet/resnetv2-50_8xb32-60e_in1k.py writes, or the file that
# the environment variable FRN_BACKBONE names. mmdet's 1x, since it does not
# start from scratch.
_base_ = './retinanet_r50_fpn_frn-all_8xb2-6x_coco.py'

max_epochs = 12
checkpoint = '{{$FRN_BACKBONE:work_dirs/resnetv2-50_8xb32-60e_in1k/epoch_60.pth}}'  # noqa: E501

model = dict(
    backbone=dict(
        _delete_=True,
        type='frn_mmdet.ResNetV2',
        depth=50,
        init_cfg=dict(
            type='Pretrained', prefix='backbone.', checkpoint=checkpoint)))

train_cfg = dict(max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.001,
        begin=0,
        end=1,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=1,
        end=max_epochs,
        T_max=max_epochs - 1,
        convert_to_iter_based=True),
]
