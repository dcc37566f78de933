_base_ = './retinanet_r50_fpn_frn-all_8xb2-6x_coco.py'

# 1 GPU x 4 images, a step of the optimizer every 4: 16 images, and their LR.
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(accumulative_counts=4)
