_base_ = '../frn/mask-rcnn_r50_fpn_frn-all_8xb2-6x_coco.py'

model = dict(norm_cfg=dict(type='SyncBN'))
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 2))
auto_scale_lr = dict(base_batch_size=32)
