_base_ = [
    '../_base_/models/retinanet_r50_fpn_frn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/scratch_6x.py',
    '../_base_/default_runtime.py'
]
