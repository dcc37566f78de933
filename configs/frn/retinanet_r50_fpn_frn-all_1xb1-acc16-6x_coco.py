_base_ = './retinanet_r50_fpn_frn-all_8xb2-6x_coco.py'

# 1 GPU x 1 image, a step of the optimizer every 16: 16 images, and their LR.
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=16)
