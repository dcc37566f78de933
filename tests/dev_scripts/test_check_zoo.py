"""Every RetinaNet and Mask R-CNN config of mmdet, and the whole zoo."""

import re
from collections import Counter
from pathlib import Path

import check_zoo
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from frn_mmdet import FRN, TLU
from frn_mmdet.errors import ConfigError

ROOT = Path(__file__).parents[2]
ZOO = check_zoo.ZOO
NOT_RELU = re.compile('SiLU|Swish|LeakyReLU|ReLU6')
# Names of files, since to read all 827 takes half a minute.
FOLDERS = sorted({
    path.parent.name for name in ('retinanet', 'freeanchor', 'mask-rcnn')
    for path in ZOO.glob(f'*/*{name}*.py')
})


def models(folder):
    """RetinaNets and Mask R-CNNs of other layers in a folder, by config."""
    found, layers = {}, []
    for path in sorted((ZOO / folder).glob('*.py')):
        try:
            model = Config.fromfile(path).model
        except (ImportError, AttributeError):  # mmpretrain; not a detector
            continue
        parts = {key: part for key, part in model.items() if key not in (
            'train_cfg', 'test_cfg', 'data_preprocessor')}
        if model.type in ('RetinaNet', 'MaskRCNN') and parts not in layers:
            layers.append(parts)
            found[path.stem] = model
    return found


@pytest.mark.slow  # tests/models/test_zoo.py has one of each class
@pytest.mark.parametrize('folder', FOLDERS)
def test_every_retinanet_and_mask_rcnn_switches(folder):
    init_default_scope('mmdet')
    for name, model in models(folder).items():
        switched = ConfigDict(
            model, type=f'frn_mmdet.{model.type}', norm_cfg='FRN')
        try:
            detector = check_zoo.build(switched)
        except ConfigError as error:
            assert NOT_RELU.search(str(error)), (name, error)
            continue
        kinds = Counter(type(m) for m in detector.modules() if isinstance(
            m, nn.modules.batchnorm._NormBase | nn.GroupNorm))
        assert kinds[FRN] > 0, name
        assert set(kinds) - {TLU} == {FRN}, name
        assert detector.switch_outcome.stayed == {}, name


@pytest.mark.slow
def test_the_whole_zoo(tool):
    """docs/zoo.md, and what it says of each detector."""
    text = tool('check_zoo.py', '--jobs', '2', timeout=3000)
    rows = [dict(zip(
        ('folder', 'detector', 'norms', 'tlu', 'stay', 'tokens', 'result'),
        line.strip('| ').split(' | '), strict=False))
        for line in text.splitlines() if line.startswith('| ')][1:]
    assert ' 0 failed' in text
    refused = [row for row in rows if row['result'].startswith('refused')]
    assert [row for row in refused if not NOT_RELU.search(row['result'])
            and 'is not a detector of images' not in row['result']] == []
    switched = [row for row in rows if row['result'].startswith('switched')]
    assert {row['folder'] for row in switched if row['stay'] != '0'} == {
        'dyhead', 'grid_rcnn', 'groie'}
    names = {row['detector'] for row in switched}
    assert names >= {'RetinaNet', 'MaskRCNN', 'FasterRCNN', 'CascadeRCNN',
                     'FCOS', 'HybridTaskCascade'}


@pytest.mark.slow
def test_no_such_folder_is_refused(tool):
    assert 'FOLDER: no configs in no_such' in tool(
        'check_zoo.py', 'no_such', ok=False)


@pytest.mark.slow
def test_the_page(tool, tmp_path):
    """A config of each kind; equal rows are one."""
    tool('check_zoo.py', 'ssd', 'soft_teacher', '--out', 'zoo.md')
    text = (tmp_path / 'zoo.md').read_text()
    assert '7 configs: 2 switched, 5 refused, 0 not built' in text
    rows = [line for line in text.splitlines() if line.startswith('| s')]
    assert len(rows) == 4
    assert 'ReLU6 acts on backbone.conv1.frn' in rows[-1]
    assert all(name in rows[0] for name in ('0.01', '0.02', '0.05', '0.1'))


def test_the_page_has_no_folder_of_one_machine():
    row = dict(config='sort/it.py', kind='not built by mmdet', detector='-')
    text = check_zoo.report(
        [dict(row, result=f"no file '{folder}/it.py'") for folder in (
            ZOO / 'sort', ZOO.parents[2] / 'torch')], 'FRN')
    assert "no file 'sort/it.py'" in text and "no file 'torch/it.py'" in text
    assert str(ZOO.parents[2]) not in text


@pytest.mark.slow
@pytest.mark.parametrize('args, words', [
    (['--jobs', '0'], '--jobs: 0 is not 1 or more'),
    (['--out', '.'], '--out: . is a folder'),
    (['--norm', 'XN'], "unknown norm 'XN'"),
    (['--norm', 'GN:num_groups'], 'is not an argument'),
])
def test_a_wrong_argument_is_one_sentence(capsys, args, words):
    with pytest.raises(SystemExit) as error:
        check_zoo.main(['retinanet', *args])
    assert error.value.code
    assert words in f'{error.value.code}{capsys.readouterr().err}'
