# From scratch on blood smears, many small cells of 256 pixels: docs/studies.
_base_ = [
    '../_base_/models/retinanet_r18_fpn_small_batch.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/schedule_small_batch.py',
    '../_base_/default_runtime.py'
]

train_cfg = dict(max_epochs=8, val_interval=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0, begin=1, end=8, T_max=7,
         convert_to_iter_based=True)
]
