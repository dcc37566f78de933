import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from scripts import load

cut_objects = load('cut_objects')

BOXES = {'red': [2, 4, 10, 20], 'blue': [40, 10, 8, 8]}
COLOURS = {'red': (0, 0, 255), 'blue': (255, 0, 0)}


@pytest.fixture
def data(tmp_path):
    """An image a split, with a red and a blue rectangle on grey."""
    image = np.full((32, 64, 3), 128, np.uint8)
    for name, (x, y, w, h) in BOXES.items():
        image[y:y + h, x:x + w] = COLOURS[name]
    root = tmp_path / 'data'
    (root / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        (root / f'{split}2017').mkdir()
        cv2.imwrite(str(root / f'{split}2017/a.png'), image)
        (root / f'annotations/instances_{split}2017.json').write_text(
            json.dumps(dict(
                images=[dict(id=7, file_name='a.png')],
                categories=[dict(id=i, name=name)
                            for i, name in enumerate(BOXES)],
                annotations=[dict(image_id=7, category_id=i, bbox=box)
                             for i, box in enumerate(BOXES.values())] * 2)))
    return root


def test_a_folder_a_class_with_its_objects(data, tmp_path):
    cut_objects.main([str(data), str(tmp_path / 'out'), '--size', '16',
                      '--margin', '0', '--per-class', '1'])
    files = sorted(p.relative_to(tmp_path / 'out')
                   for p in (tmp_path / 'out').rglob('*.png'))
    assert files == [Path(split) / name / '00000.png'
                     for split in ('train', 'val') for name in sorted(BOXES)]
    blue = cv2.imread(str(tmp_path / 'out/val/blue/00000.png'))
    assert blue.shape == (16, 16, 3)
    assert (blue == COLOURS['blue']).all()
    # Half as wide as high: the square has as much of what is beside it, and
    # the image's edge is the box's left neighbour.
    red = cv2.imread(str(tmp_path / 'out/train/red/00000.png'))
    assert (red[8, 8] == COLOURS['red']).all()
    assert (red[:, [0, 15]] == 128).all()


def test_a_window_shows_an_object_as_large_as_it_is(data, tmp_path):
    cut_objects.main([str(data), str(tmp_path / 'out'), '--size', '16',
                      '--window', '16'])
    blue = cv2.imread(str(tmp_path / 'out/val/blue/00000.png'))
    is_blue = (blue == COLOURS['blue']).all(-1)
    assert is_blue[4:12, 4:12].all()
    assert is_blue.sum() == 8 * 8


def test_what_is_there_stays(data, tmp_path):
    file = tmp_path / 'out/val/red/mine.png'
    file.parent.mkdir(parents=True)
    file.write_text('mine')
    with pytest.raises(SystemExit, match='OUT: .*out is there already'):
        cut_objects.main([str(data), str(tmp_path / 'out')])
    assert [p for p in tmp_path.rglob('*') if p.is_file()
            and data not in p.parents] == [file]
    file.rename(tmp_path / 'file')
    with pytest.raises(SystemExit, match='OUT: .*file is there already'):
        cut_objects.main([str(data), str(tmp_path / 'file')])


@pytest.mark.parametrize('option', [
    '--size=0', '--size=x', '--margin=-2', '--margin=nan', '--window=0',
    '--window=-5', '--per-class=0', '--per-class=-1'])
def test_numbers_that_make_no_sense(data, tmp_path, option, capsys):
    with pytest.raises(SystemExit):
        cut_objects.main([str(data), str(tmp_path / 'out'), option])
    key, _, value = option.partition('=')
    assert f"argument {key}: '{value}' is not a" in capsys.readouterr().err


@pytest.mark.parametrize('change, match', [
    (lambda records: records.pop('categories'), "KeyError.'categories'"),
    (lambda records: records['images'].clear(), 'KeyError.7'),
    (lambda records: records['annotations'][0].update(category_id=9),
     'KeyError.9'),
    (lambda records: records['annotations'][0].update(bbox=[1, 2, 3]),
     'not enough values'),
    (lambda records: records['annotations'][0].update(bbox=[1, 2, 3, -1]),
     r'bbox \[1, 2, 3, -1\]'),
    (lambda records: records['categories'][0].update(name='a/b'),
     "'a/b' can be no folder"),
])
def test_broken_annotations(data, tmp_path, change, match):
    file = data / 'annotations/instances_val2017.json'
    records = json.loads(file.read_text())
    change(records)
    file.write_text(json.dumps(records))
    with pytest.raises(SystemExit, match=(
            f'DATA: {file} is not a COCO annotation file: .*{match}')):
        cut_objects.main([str(data), str(tmp_path / 'out')])
    assert list(tmp_path.iterdir()) == [data]


def test_broken_files(data, tmp_path):
    out = tmp_path / 'out'
    (data / 'val2017/a.png').write_text('no image')
    with pytest.raises(SystemExit, match='DATA: .*val2017/a.png is no image'):
        cut_objects.main([str(data), str(out)])
    file = data / 'annotations/instances_val2017.json'
    file.write_text('[')
    with pytest.raises(SystemExit, match='val2017.json is not a COCO annota'):
        cut_objects.main([str(data), str(out)])
    file.unlink()
    with pytest.raises(SystemExit, match='DATA: no file .*_val2017'):
        cut_objects.main([str(data), str(out)])
    assert list(tmp_path.iterdir()) == [data]


def test_a_folder_that_cannot_be(data, tmp_path):
    (tmp_path / 'file').touch()
    out = tmp_path / 'file/out'
    with pytest.raises(SystemExit, match='file/out cannot be written: '):
        cut_objects.main([str(data), str(out)])
