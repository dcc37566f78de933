import hashlib
import json
import resource

import cv2
import matplotlib.path
import numpy as np
import pytest
from pycocotools.coco import COCO
from scripts import load

make_shapes = load('make_shapes')


def make(out, *options, train=2, val=2, size=64):
    make_shapes.main([
        str(out), f'--train={train}', f'--val={val}', f'--size={size}',
        *options
    ])
    return out


def annotations(root, split='train'):
    file = root / f'annotations/instances_{split}2017.json'
    return json.loads(file.read_text())


def images(root, split='train'):
    return [cv2.imread(str(file))
            for file in sorted((root / f'{split}2017').iterdir())]


def hashes(root):
    return {str(file.relative_to(root)):
            hashlib.sha256(file.read_bytes()).hexdigest()
            for file in root.rglob('*') if file.is_file()}


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """Without variation: every shape has one colour, found nowhere else."""
    return make(tmp_path_factory.mktemp('plain') / 'shapes', '--variation=0',
                '--empty=0.2', train=30, size=128)


@pytest.fixture(scope='module')
def shapes(plain):
    """COCO's record, COCO's mask and the drawn pixels of every shape."""
    coco = COCO(plain / 'annotations/instances_train2017.json')
    found = []
    for record in coco.anns.values():
        name = coco.imgs[record['image_id']]['file_name']
        image = cv2.imread(str(plain / 'train2017' / name))
        mask = coco.annToMask(record).astype(bool)
        color = image[mask][0]
        found.append((record, mask, (image == color).all(axis=-1)))
    assert len(found) > 50
    return found


def test_masks_are_the_drawn_pixels(shapes):
    for _, mask, drawn in shapes:
        np.testing.assert_array_equal(mask, drawn)


def test_boxes_and_areas_are_those_of_the_drawn_pixels(shapes):
    for record, _, drawn in shapes:
        assert record['area'] == drawn.sum()
        x, y, w, h = record['bbox']
        assert drawn[y:y + h, x:x + w].sum() == drawn.sum()
        edges = (drawn[y, :], drawn[y + h - 1, :],
                 drawn[:, x], drawn[:, x + w - 1])
        assert all(edge.any() for edge in edges)


def test_polygons_go_around_the_drawn_pixels(shapes):
    for record, _, drawn in shapes:
        polygon = matplotlib.path.Path(
            np.reshape(record['segmentation'][0], (-1, 2)))
        centers = np.argwhere(np.ones_like(drawn))[:, ::-1] + 0.5
        inside = polygon.contains_points(centers).reshape(drawn.shape)
        # Rasterisers differ on the outline, by less than one pixel of it.
        assert (inside ^ drawn).sum() < cv2.arcLength(
            np.float32(polygon.vertices)[:, None], True)
        core = cv2.erode(drawn.astype(np.uint8), np.ones((3, 3)))
        assert inside[core > 0].all()


def test_categories_name_the_drawn_shapes(plain, shapes):
    # the share of its circumscribed circle that a shape fills
    share = {'circle': 1, 'square': 2 / np.pi,
             'triangle': 3 * 3**0.5 / 4 / np.pi}
    names = {c['id']: c['name'] for c in annotations(plain)['categories']}
    seen = set()
    for record, _, drawn in shapes:
        points = np.argwhere(drawn).astype(np.float32)
        radius = cv2.minEnclosingCircle(points)[1] + 0.5
        ratio = drawn.sum() / (np.pi * radius**2)
        nearest = min(share, key=lambda name: abs(share[name] - ratio))
        assert names[record['category_id']] == nearest
        seen.add(nearest)
    assert seen == set(share)


def test_layout_is_cocos(plain):
    for split, count in ('train', 30), ('val', 2):
        data = annotations(plain, split)
        assert set(data) == {
            'info', 'licenses', 'images', 'annotations', 'categories'}
        files = sorted(f.name for f in (plain / f'{split}2017').iterdir())
        assert files == [image['file_name'] for image in data['images']]
        assert len(files) == count
        for name in 'images', 'annotations':
            ids = [record['id'] for record in data[name]]
            assert ids == list(range(1, len(ids) + 1))
    assert images(plain)[0].shape == (128, 128, 3)


def test_empty_is_the_share_of_images_without_shapes(plain, tmp_path):
    def share(root):
        data = annotations(root)
        shown = {record['image_id'] for record in data['annotations']}
        return 1 - len(shown) / len(data['images'])

    assert 0 < share(plain) < 0.5  # 0.2 was asked for
    assert share(make(tmp_path / 'none', '--empty=1')) == 1
    assert share(make(tmp_path / 'all', train=20)) == 0


def test_the_seed_decides_every_byte(tmp_path):
    first = hashes(make(tmp_path / 'a', '--seed=3'))
    assert hashes(make(tmp_path / 'b', '--seed=3')) == first
    other = hashes(make(tmp_path / 'c', '--seed=4'))
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_no_two_images_are_alike(plain):
    every = [image.tobytes()
             for split in ('train', 'val') for image in images(plain, split)]
    assert len(set(every)) == len(every) == 32


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path):
    few = make(tmp_path / 'few', train=2, val=1)
    many = make(tmp_path / 'many', train=4, val=3)
    for split, count in ('train', 2), ('val', 1):
        np.testing.assert_array_equal(
            images(few, split), images(many, split)[:count])
        old = annotations(few, split)
        new = annotations(many, split)
        assert old['images'] == new['images'][:count]
        records = old['annotations']
        assert records == new['annotations'][:len(records)]


@pytest.fixture(scope='module')
def dial(tmp_path_factory):
    """The same 40 scenes at three settings of the dial."""
    root = tmp_path_factory.mktemp('dial')
    return {v: make(root / str(v), f'--variation={v}', train=40)
            for v in (0, 0.2, 1)}


def test_the_dial_leaves_the_shapes_alone(dial):
    data = [annotations(root) for root in dial.values()]
    assert data[0]['annotations'] == data[1]['annotations']
    assert data[0]['annotations'] == data[2]['annotations']


def measure(image, plain):
    """The light of an image, by a line through the plain one's pixels."""
    x, y = plain.ravel().astype(float), image.ravel().astype(float)
    slope, offset = np.polyfit(x, y, 1)
    noise = np.std(y - slope * x - offset)
    return dict(brightness=offset + slope * 127.5, contrast=np.log(slope),
                noise=noise)


@pytest.mark.parametrize(
    'name, least', [('brightness', 20), ('contrast', 0.3), ('noise', 5)])
def test_the_dial_varies(dial, name, least):
    little, much = (
        np.std([measure(*pair)[name] for pair in
                zip(images(dial[v]), images(dial[0]), strict=True)])
        for v in (0.2, 1))
    assert much > least
    assert 0.1 * much < little < 0.4 * much


def test_without_variation_there_is_one_light(dial):
    pixels = np.stack(images(dial[0]))
    # the colours reach 85 levels around mid-grey, none of them any further
    assert 42 <= pixels.min() < 50 and 205 < pixels.max() <= 213


def test_full_variation_does_not_drown_in_black_or_white(dial):
    pixels = np.stack(images(dial[1]))
    assert ((pixels == 0) | (pixels == 255)).mean() < 0.05
    assert np.ptp(pixels.mean(axis=(1, 2, 3))) > 100


def test_made_twice_is_made_once(tmp_path, capsys):
    out = make(tmp_path / 'shapes')
    times = {file: file.stat().st_mtime_ns for file in out.rglob('*')}
    make(out)
    assert 'nothing to do' in capsys.readouterr().out
    assert times == {f: f.stat().st_mtime_ns for f in out.rglob('*')}


@pytest.mark.parametrize('options', [['--seed=5'], ['--variation=0.5']])
def test_another_data_set_is_not_touched(tmp_path, options):
    out = make(tmp_path / 'shapes', '--seed=1')
    before = hashes(tmp_path)
    with pytest.raises(SystemExit) as error:
        make(out, '--seed=1', *options)
    assert f'{out} holds another data set' in error.value.code
    assert options[0].split('=')[0] in error.value.code
    assert hashes(tmp_path) == before


@pytest.mark.parametrize('content', ['', '[]', '{"info": {}}'])
def test_a_folder_of_others_is_not_touched(tmp_path, content):
    file = tmp_path / 'annotations/instances_train2017.json'
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(SystemExit, match='was not made by this tool'):
        make(tmp_path)
    assert list(hashes(tmp_path)) == ['annotations/' + file.name]
    assert file.read_text() == content


def test_a_data_set_of_an_older_version_is_not_taken(tmp_path, monkeypatch):
    make(tmp_path / 'shapes')
    monkeypatch.setattr(make_shapes, 'VERSION', 'next')
    with pytest.raises(SystemExit, match='another version'):
        make(tmp_path / 'shapes')


def test_an_empty_folder_is_filled(tmp_path):
    make(tmp_path)
    assert len(images(tmp_path)) == 2


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match='file/shapes cannot be written'):
        make(tmp_path / 'file/shapes')


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(make_shapes, 'tight_box', interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / 'data/shapes')
    assert list((tmp_path / 'data').iterdir()) == []


@pytest.mark.parametrize('option, value', [
    ('--train', '0'), ('--val', '-1'), ('--train', '1.5'), ('--size', '63'),
    ('--size', '5000'), ('--seed', '-1'), ('--variation', '1.1'),
    ('--variation', '-0.1'), ('--variation', 'nan'), ('--variation', 'much'),
    ('--empty', '2'),
])
def test_a_bad_value_is_named(tmp_path, capsys, option, value):
    with pytest.raises(SystemExit):
        make_shapes.main([str(tmp_path / 'out'), f'{option}={value}'])
    assert f"argument {option}: '{value}' is not" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(SystemExit) as error:
            make(tmp_path / 'data/shapes', '--variation=1')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 'shapes cannot be written (File too large)' in error.value.code
    assert list((tmp_path / 'data').iterdir()) == []
