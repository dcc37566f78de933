# Six epochs of 100 steps on tools/make_shapes.py's 800 images. Epochs rather
# than steps as in mmdet's own schedules, so that its default runtime fits.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=6, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# From scratch with FRN: a warm-up (without one FRN may not learn at all), then
# one cosine down to 0.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        begin=0,
        end=1,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=1,
        end=6,
        convert_to_iter_based=True)
]

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
    # no decay on what a norm learns, the threshold tau of TLU included
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        custom_keys=dict(tau=dict(decay_mult=0.)),
        bypass_duplicate=True))
