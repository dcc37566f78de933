# Five epochs of make_shapes.py's images, warm-up and one cosine, for
# studies over batch sizes. Counted in epochs, so that a batch size changes
# steps and not images.
_base_ = './schedule_shapes.py'

train_cfg = dict(max_epochs=5, val_interval=5)

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

optim_wrapper = dict(optimizer=dict(lr=0.012))
auto_scale_lr = dict(enable=False, base_batch_size=16)
