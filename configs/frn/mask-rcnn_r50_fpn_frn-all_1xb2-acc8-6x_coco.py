_base_ = './mask-rcnn_r50_fpn_frn-all_8xb2-6x_coco.py'

# 1 GPU x 2 images, a step of the optimizer every 8: 16 images, and their LR.
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(accumulative_counts=8)
