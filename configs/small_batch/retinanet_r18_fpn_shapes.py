# A RetinaNet for studies of the batch size on a CPU: docs/studies.
_base_ = [
    '../_base_/models/retinanet_r18_fpn_small_batch.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/schedule_small_batch.py',
    '../_base_/default_runtime.py'
]
