# A Mask R-CNN small enough for a CPU, with FRN everywhere (4conv1fc box head),
# on the shapes of make_shapes.py: for tests and studies of RoI heads.
_base_ = [
    '../_base_/models/mask-rcnn_r18_fpn_narrow.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/schedule_shapes.py',
    '../_base_/default_runtime.py'
]

default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
