# From ImageNet to blood cells: docs/studies/pretrained.md. About as many steps
# as the kangaroos take.
_base_ = [
    '../_base_/models/retinanet_mobilenet-v2_fpn.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/schedule_finetune.py',
    '../_base_/default_runtime.py'
]

model = dict(bbox_head=dict(num_classes=3))

train_cfg = dict(max_epochs=4, val_interval=4)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        begin=0,
        end=1,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=1,
        end=4,
        T_max=3,
        convert_to_iter_based=True)
]
