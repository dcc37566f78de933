# A network of the small kind on single blood cells, minutes on a CPU:
# docs/studies/imagenet_backbone.md. cut_objects.py makes the images.
_base_ = '../_base_/imagenet_classifier.py'

max_epochs = 10
data_root = '{{$CELLS_ROOT:data/bccd_cells}}'
classes = ('RBC', 'WBC', 'Platelets')

# The backbone of configs/small_batch: its coarsest map is 4x4 here.
model = dict(
    backbone=dict(
        type='frn_mmdet.ResNetV2',
        depth=18,
        base_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        out_indices=(2, )),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=3,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, )))

# As the detectors of configs/small_batch see them.
data_preprocessor = dict(
    num_classes=3, mean=[127.5] * 3, std=[50.] * 3, to_rgb=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.5, 1.)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root,
        data_prefix='train',
        metainfo=dict(classes=classes),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root,
        data_prefix='val',
        metainfo=dict(classes=classes),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
# Of the cells held out most are red: what counts is the mean over the classes
# (recall), where chance is a third.
val_evaluator = [
    dict(type='Accuracy', topk=(1, )),
    dict(type='SingleLabelMetric', items=('recall', ))
]
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(
        type='frn_mmdet.CosineWarmupLR',
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
auto_scale_lr = dict(base_batch_size=32)
