_base_ = '../_base_/imagenet_classifier.py'

# Open: whether with the auxiliary head. With, as Szegedy et al. have it and
# TensorFlow's slim, whose weight of 0.4 this is; without label smoothing.
# One of its maps is 1x1, where FRN's eps is learnt (section 3.1).
model = dict(
    norm_cfg=dict(learnable_eps=True),
    backbone=dict(type='InceptionV3', num_classes=1000, aux_logits=True),
    head=dict(
        type='frn_mmdet.AuxClsHead',
        aux_weight=0.4,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))
