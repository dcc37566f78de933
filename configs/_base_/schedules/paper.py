# Section 4.2 of the FRN paper. A cell adds its batch and its number of steps.
train_cfg = dict(type='IterBasedTrainLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    # Stated: momentum 0.9, weight decay 4e-4, and a base LR x batch / 64, the
    # base one of 0.01, 0.05 and 0.1, the best reported. Open: which one won.
    # Try all three: this is the middle one.
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=4e-4),
    # Open: what decays. Convolution weights only, as in the TensorFlow
    # Object Detection API. The head's convolutions are shared by levels:
    # hence bypass_duplicate.
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys=dict(tau=dict(decay_mult=0.)),
        bypass_duplicate=True))
auto_scale_lr = dict(enable=True, base_batch_size=64)

# Stated: cosine warm-up from 0, cosine decay without restarts. Open: the
# length of the warm-up. 1.6 %, the API's 2000 of 125K steps, so that all
# batch sizes share one curve over images seen.
param_scheduler = [
    dict(type='frn_mmdet.CosineLR', warm_up=0.016, by_epoch=False)
]
