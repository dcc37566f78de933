"""Evaluate a checkpoint: mmdet's tools/test.py, with its flags.

python tools/test.py CONFIG CHECKPOINT [--out FILE.pkl] [--show-dir DIR]
    [--tta] [--cfg-options ...]
"""

from frn_mmdet.engine.run_tool import run_mmdet_tool

if __name__ == '__main__':
    run_mmdet_tool('test.py', splits=('test', ))
