import re
from pathlib import Path

import pytest
import shrink_config
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

pytestmark = pytest.mark.slow  # of a script for developers
ROOT = Path(__file__).parents[2]


def rows(text):
    """The table as a dict of dicts, by config."""
    lines = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in text.splitlines() if line.startswith('|')
    ]
    return {
        line[0]: dict(zip(lines[0], line, strict=True))
        for line in lines[2:]
    }


FILES = [p for p in sorted((ROOT / 'configs').rglob('*.py'))
         if '_base_' not in p.parts]


def test_table_of_the_configs(tool):
    table = rows(tool('check_configs.py'))
    assert set(table) == {p.stem for p in FILES}
    assert not [name for name, row in table.items() if 'failed' in
                row.values()]
    # Section 4.2: batch, steps and images of the 12 cells.
    cells = {n: row for n, row in table.items() if '_r101_' in n}
    assert len(cells) == 12
    steps = {'8': 125000, '4': 250000, '2': 500000}
    for name, row in cells.items():
        images = re.search(r'8xb(\d)', name)[1]
        short = 5 if 'finetune' in name else 1
        assert row['gpus'] == '8'
        assert row['images/gpu'] == images
        assert int(row['steps']) == steps[images] // short
        assert row['images'] == ('1.6 M' if 'finetune' in name else '8 M')
        assert float(row['peak LR']) == pytest.approx(
            .05 * 8 * int(images) / 64)
        # ResNet-101: 104 norms; FPN's 5 convolutions; 8 for each of 5 levels.
        assert int(row['norms']) == 104 + 5 + 40
        # 33 blocks: two inside and one after the add; the stem; the head.
        assert int(row['thresholds']) == (33 * 3 + 1 + 40
                                          if '_frn_' in name else 0)
    # Section 4.1: 300K steps of 8 x 32 images are 59.94 epochs.
    cells = [row for name, row in table.items() if name.endswith('_in1k')]
    assert len(cells) == 2
    for row in cells:
        assert (row['gpus'], row['images/gpu']) == ('8', '32')
        assert int(row['steps']) == pytest.approx(300000, rel=2e-3)
        assert row['images'] == '76.9 M'
        assert float(row['peak LR']) == .1


@pytest.mark.parametrize('name', [
    'demo/mask-rcnn_r18_fpn_frn_shapes.py',
    'frn/retinanet_r50_fpn_frn-all_1xb2-acc8-6x_coco.py',
    'mask_rcnn/mask-rcnn_r50_fpn_syncbn-all_8xb2-6x_coco.py',
])
def test_a_run(tool, name):
    path = ROOT / 'configs' / name
    row = rows(tool('check_configs.py', path, '--run'))[path.stem]
    assert re.match(r'loss \d+\.\d+, \d+ s', row['run'])


# The README's line on a stock config, all of it as narrow as it gets.
ONE_LINE = """_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
model = dict(
    type='frn_mmdet.RetinaNet', norm_cfg='FRN',
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=2))
"""


def test_a_stock_config_with_the_one_line_runs(tool, tmp_path):
    """And one that fails beside it is named."""
    good, bad = tmp_path / 'mine.py', tmp_path / 'bad.py'
    good.write_text(ONE_LINE)
    bad.write_text(ONE_LINE.replace("'FRN'", "'XN'"))
    text = tool('check_configs.py', bad, good, '--run', ok=False)
    table = rows(text)
    assert re.match(r'loss \d+\.\d+, \d+ s', table['mine']['run'])
    # 20 of the backbone, the FPN's 3 + 5, and 4 of the head
    assert table['mine']['norms'] == '32'
    # 12 epochs of COCO's images with objects, 2 a step
    assert table['mine']['steps'] == '703596'
    assert set(table['bad'].values()) == {'bad', 'failed'}
    assert f'failed: {bad}: ConfigError: model.norm_cfg: unknown' in text


@pytest.mark.parametrize('name, norm_cfg, note', [
    ('ssd/ssd300_coco.py', None, ''),  # RepeatDataset
    ('yolox/yolox_tiny_8xb8-300e_coco.py', 'BN', ''),  # MultiImageMixDataset
    ('pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py', 'SyncBN', 'as BN'),
    ('cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py', dict(type='SyncBN'),
     'as BN'),
    ('lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py', 'GN', ''),
])
def test_any_stock_config_reads_the_generated_data(
        tmp_path, name, norm_cfg, note):
    shrink_config.make_shapes(tmp_path)
    init_default_scope('mmdet')
    config = tmp_path / 'mine.py'
    config.write_text(f"_base_ = 'mmdet::{name}'\n"
                      f'model = dict(norm_cfg={norm_cfg!r})\n')
    cfg = Config.fromfile(config)
    assert note in shrink_config.shrink(cfg, tmp_path)
    for split in 'train', 'val':
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        sample = dataset[0]
        assert str(tmp_path) in sample['data_samples'].img_path
        assert max(sample['inputs'].shape) <= 448  # YOLOX tiny's
    assert cfg.model.get('norm_cfg') in (
        None, 'GN', 'BN', dict(type='BN'))
    assert 'checkpoint=' not in str(cfg.model)
