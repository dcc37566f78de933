import re
from pathlib import Path

import pytest

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


def test_table_of_all_configs(tool):
    table = rows(tool('check_configs.py'))
    files = [
        p for p in (ROOT / 'configs').rglob('*.py') if '_base_' not in p.parts
    ]
    assert set(table) == {p.stem for p in files}
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


@pytest.mark.parametrize('name', [
    'demo/mask-rcnn_r18_fpn_frn_shapes.py',
    pytest.param('frn/retinanet_r50_fpn_frn-all_1xb2-acc8-6x_coco.py',
                 marks=pytest.mark.slow),
    pytest.param('mask_rcnn/mask-rcnn_r50_fpn_syncbn-all_8xb2-6x_coco.py',
                 marks=pytest.mark.slow),
])
def test_a_run(tool, name):
    path = ROOT / 'configs' / name
    row = rows(tool('check_configs.py', path, '--run'))[path.stem]
    assert re.match(r'loss \d+\.\d+, \d+ s', row['run'])


def test_a_config_that_fails_is_named(tool, tmp_path):
    bad = tmp_path / 'bad.py'
    good = ROOT / 'configs/demo/retinanet_r18_fpn_frn_shapes.py'
    bad.write_text(f"_base_ = '{good}'\nmodel = dict(norm_cfg='XN')\n")
    text = tool('check_configs.py', bad, good, ok=False)
    table = rows(text)
    assert table['bad']['norms'] == 'failed'
    assert table[good.stem]['norms'] == '30'
    assert f'failed: {bad}: ConfigError: model.norm_cfg: unknown' in text
