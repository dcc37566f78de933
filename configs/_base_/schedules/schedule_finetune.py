# Ten epochs of a few hundred photographs, from pretrained weights.
_base_ = './schedule_shapes.py'

train_cfg = dict(max_epochs=10, val_interval=10)

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
        end=10,
        T_max=9,
        convert_to_iter_based=True)
]

optim_wrapper = dict(optimizer=dict(lr=0.0005))
auto_scale_lr = dict(enable=False, base_batch_size=2)
