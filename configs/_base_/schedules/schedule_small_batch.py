# Five epochs of tools/make_shapes.py's images, warm-up and one cosine, for
# studies over batch sizes. Counted in epochs, so that a batch size changes
# steps and not images.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=5, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

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
        end=5,
        T_max=4,
        convert_to_iter_based=True)
]

# AdamW, since there are minutes rather than days (see schedule_shapes.py).
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.012, weight_decay=0.01, fused=True),
    # no decay on what a norm learns, the threshold tau of TLU included
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        custom_keys=dict(tau=dict(decay_mult=0.)),
        bypass_duplicate=True))
auto_scale_lr = dict(enable=False, base_batch_size=16)
