_base_ = [
    '../_base_/models/retinanet_r101_fpn_paper.py',
    '../_base_/datasets/coco_detection_1024.py',
    '../_base_/schedules/paper.py',
    '../_base_/runtime_by_steps.py',
]

# 8 GPUs x 2 images, 100K steps: 1.6 million images.
# BN*: fine-tuned from ImageNet. Open: what is frozen; nothing.
model = dict(
    norm_cfg=dict(type='BN'),
    backbone=dict(
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='torchvision://resnet101')))
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=100000, val_interval=10000)
