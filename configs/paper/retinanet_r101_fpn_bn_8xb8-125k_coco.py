_base_ = [
    '../_base_/models/retinanet_r101_fpn_paper.py',
    '../_base_/datasets/coco_detection_1024.py',
    '../_base_/schedules/paper_8xb8-125k.py',
    '../_base_/runtime_by_steps.py',
]

model = dict(norm_cfg=dict(type='BN'))
train_dataloader = dict(batch_size=8)
