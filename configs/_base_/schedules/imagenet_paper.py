# Section 4.1 of the FRN paper: 300K steps of 8 x 32 images, SGD, cosine.
#
# Stated: 300K steps, images held constant at smaller batches. In epochs, so
# that they are whatever the batch: 60 of 1 281 167 images are 300 300 steps
# of 256 images (300K are 59.94 epochs).
max_epochs = 60
# Open: the warm-up's length. Five epochs, the usual one on ImageNet (Goyal et
# al. 2017); the paper says that FRN needs one.
warm_up = 5

train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# Stated: cosine warm-up from 0, cosine decay without restarts.
param_scheduler = [
    dict(
        type='frn_mmdet.CosineWarmupLR',
        begin=0,
        end=warm_up,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=warm_up,
        end=max_epochs,
        T_max=max_epochs - warm_up,
        convert_to_iter_based=True),
]

# Stated: LR 0.1 x batch / 256. mmengine multiplies by the batch that there is
# (images per GPU x GPUs), so the number here is the one for 256.
auto_scale_lr = dict(enable=True, base_batch_size=256)
optim_wrapper = dict(
    type='OptimWrapper',
    # Open: momentum and weight decay of the ImageNet runs. Those of ResNet.
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
    # Open: what decays. The weights of convolutions and the classifier only,
    # as in this plugin's other configs of the paper.
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys=dict(tau=dict(decay_mult=0.))))
