# mmdet's RetinaNet R-50-FPN with FRN everywhere, from scratch.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    type='frn_mmdet.RetinaNet',
    # The one key. A dict, so that a child config or --cfg-options can set a
    # field of it (norm_cfg.tlu=False) as well as replace it (norm_cfg=GN).
    norm_cfg=dict(type='FRN'),
    # There is no ImageNet checkpoint of an FRN ResNet to start from.
    backbone=dict(init_cfg=None, frozen_stages=-1))
