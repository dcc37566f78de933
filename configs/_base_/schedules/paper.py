# What the schedules of section 4.2 of the FRN paper have in common.
train_cfg = dict(type='IterBasedTrainLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    # Stated: momentum 0.9, weight decay 4e-4.
    optimizer=dict(type='SGD', momentum=0.9, weight_decay=4e-4),
    # Open: what decays. Convolution weights only, as in the TensorFlow
    # Object Detection API. The head's convolutions are shared by levels:
    # hence bypass_duplicate.
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        custom_keys=dict(tau=dict(decay_mult=0.)),
        bypass_duplicate=True))
