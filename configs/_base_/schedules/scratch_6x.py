# 72 epochs from scratch: the length of mmdet's scratch configs (He et al.,
# "Rethinking ImageNet Pre-training", 6x) and near the FRN paper's 68, with
# the paper's warm-up and cosine decay. FRN learns badly without the warm-up
# (section 4.1). Batch 16; a config for another batch scales the LR.
max_epochs = 72

train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=6)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# In epochs, so that the curve over images seen is the same at any batch.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.001,
        begin=0,
        end=1,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=1,
        end=max_epochs,
        T_max=max_epochs - 1,
        convert_to_iter_based=True),
]

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
    # No decay on gamma, beta and tau. The switch puts the threshold after a
    # residual add in a layer that is no norm, so tau is named as well.
    # RetinaSepBNHead shares its convolutions: hence bypass_duplicate.
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        custom_keys=dict(tau=dict(decay_mult=0.)),
        bypass_duplicate=True))

# Enable with tools/train.py --auto-scale-lr.
auto_scale_lr = dict(enable=False, base_batch_size=16)
