_base_ = './retinanet_r50_fpn_frn-all_8xb2-6x_coco.py'

model = dict(norm_cfg=dict(ws=True))
