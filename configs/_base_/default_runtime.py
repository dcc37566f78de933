# mmdet's runtime, keeping two checkpoints of a long training, not all.
_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2))
