_base_ = './retinanet_r50_fpn_frn-all_8xb2-6x_coco.py'

# 1 GPU x 4 images: a quarter of the batch, a quarter of the LR.
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.02 / 4))
auto_scale_lr = dict(base_batch_size=4)
