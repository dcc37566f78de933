# 291 + 73 blood smears with many small cells, at 256 pixels, in COCO's layout;
# the folder is the environment variable BCCD_ROOT.
_base_ = './kangaroo_detection.py'

data_root = '{{$BCCD_ROOT:data/bccd}}/'
metainfo = dict(
    classes=('RBC', 'WBC', 'Platelets'),
    palette=[(230, 159, 0), (0, 114, 178), (0, 158, 115)])
dataset = dict(data_root=data_root, metainfo=metainfo)

train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader

val_evaluator = dict(
    ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
