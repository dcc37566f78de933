# COCO at 1024x1024, as in section 4.2 of the FRN paper.
_base_ = './coco_detection.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    # Open: augmentation. As in the TensorFlow Object Detection API:
    # horizontal flip and a random crop of at least 0.75 of the area, here
    # sides of at least 0.75 ** 0.5.
    dict(
        type='RandomCrop',
        crop_type='relative_range',
        crop_size=(0.866, 0.866),
        allow_negative_crop=True),
    # Stated: "resized to 1024x1024". Open: the aspect ratio; not kept.
    dict(type='Resize', scale=(1024, 1024), keep_ratio=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1024, 1024), keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor'))
]

# Counted in steps, so the data has no end; all images have one shape, so
# none need be grouped by aspect ratio.
train_dataloader = dict(
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    batch_sampler=None,
    dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
