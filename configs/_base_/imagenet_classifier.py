# What the two networks of section 4.1 of the FRN paper have in common.
_base_ = [
    './datasets/imagenet_299.py', './schedules/imagenet_paper.py',
    './imagenet_runtime.py'
]

# The one key. --cfg-options model.norm_cfg=GN is the paper's row for GN.
model = dict(type='frn_mmdet.ImageClassifier', norm_cfg=dict(type='FRN'))
