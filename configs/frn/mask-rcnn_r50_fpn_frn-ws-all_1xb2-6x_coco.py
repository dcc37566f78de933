_base_ = './mask-rcnn_r50_fpn_frn-all_1xb2-6x_coco.py'

model = dict(norm_cfg=dict(ws=True))
