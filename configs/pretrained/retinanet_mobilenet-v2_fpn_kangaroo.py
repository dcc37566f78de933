# From ImageNet to 131 photographs of kangaroos: docs/studies/pretrained.md.
_base_ = [
    '../_base_/models/retinanet_mobilenet-v2_fpn.py',
    '../_base_/datasets/kangaroo_detection.py',
    '../_base_/schedules/schedule_finetune.py',
    '../_base_/default_runtime.py'
]
