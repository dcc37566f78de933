_base_ = [
    '../_base_/models/retinanet_r101_fpn_paper.py',
    '../_base_/datasets/coco_detection_1024.py',
    '../_base_/schedules/paper.py',
    '../_base_/runtime_by_steps.py',
]

# 8 GPUs x 4 images, 250K steps: 8.0 million images.
model = dict(norm_cfg=dict(type='BN'))
train_dataloader = dict(batch_size=4)
train_cfg = dict(max_iters=250000, val_interval=25000)
