_base_ = [
    '../_base_/models/retinanet_r101_fpn_paper.py',
    '../_base_/datasets/coco_detection_1024.py',
    '../_base_/schedules/paper.py',
    '../_base_/runtime_by_steps.py',
]

# 8 GPUs x 8 images, 125K steps: 8.0 million images.
model = dict(norm_cfg=dict(type='FRN'))
train_dataloader = dict(batch_size=8)
train_cfg = dict(max_iters=125000, val_interval=12500)
