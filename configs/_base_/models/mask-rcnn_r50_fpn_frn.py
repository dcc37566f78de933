# mmdet's Mask R-CNN R-50-FPN with FRN everywhere, from scratch.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    type='frn_mmdet.MaskRCNN',
    norm_cfg=dict(type='FRN'),  # the one key
    backbone=dict(init_cfg=None, frozen_stages=-1),
    # The box head of "Rethinking ImageNet Pre-training" and of mmdet's
    # gn-all configs: convolutions, so that a norm has a place in it.
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead', conv_out_channels=256)))
