_base_ = './retinanet_r50_fpn_frn-all_8xb2-6x_coco.py'

# 1 GPU x 2 images: an eighth of the batch, an eighth of the LR.
optim_wrapper = dict(optimizer=dict(lr=0.02 / 8))
auto_scale_lr = dict(base_batch_size=2)
