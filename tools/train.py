"""Train a detector: mmdet's tools/train.py, with its flags.

python tools/train.py CONFIG [--work-dir DIR] [--amp] [--resume [CHECKPOINT]]
    [--cfg-options model.norm_cfg=GN ...]
"""

from frn_mmdet.engine.run_tool import run_mmdet_tool

if __name__ == '__main__':
    run_mmdet_tool('train.py', splits=('train', 'val'))
