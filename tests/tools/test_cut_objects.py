import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import cut_objects  # noqa: E402

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


def test_what_is_wrong_is_said(data, tmp_path):
    with pytest.raises(SystemExit, match='no file .*instances_train2017'):
        cut_objects.main([str(tmp_path), str(tmp_path / 'out')])
    (tmp_path / 'out/train').mkdir(parents=True)
    with pytest.raises(SystemExit, match='is there already'):
        cut_objects.main([str(data), str(tmp_path / 'out')])
