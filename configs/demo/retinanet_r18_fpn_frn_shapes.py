# A RetinaNet small enough for a CPU, with FRN everywhere, on generated shapes.
#
#     make demo
#
# or, step by step:
#
#     python -m frn_mmdet make_shapes data/shapes
#     python tools/train.py configs/demo/retinanet_r18_fpn_frn_shapes.py
#
# Measured in two runs on 2 cores without a GPU: training and test together
# 140 and 162 s, AP 0.77 and 0.80, AP50 0.97 and 0.99 on held-out images.
_base_ = [
    '../_base_/models/retinanet_r18_fpn_narrow.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/schedule_shapes.py',
    '../_base_/default_runtime.py'
]

default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
