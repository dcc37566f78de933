import io
import itertools
import json
from pathlib import Path

import matplotlib.colors
import matplotlib.pyplot as plt
import mmcv
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from scripts import load

ROOT = Path(__file__).parents[2]


draw_detections = load('draw_detections')
plot_training = load('plot_training')


# --- draw_detections.py ---


def boxes(*found):
    """Predictions of (box, label, score)."""
    return InstanceData(
        bboxes=np.array([box for box, _, _ in found], float).reshape(-1, 4),
        labels=np.array([label for _, label, _ in found], int),
        scores=np.array([score for _, _, score in found], float))


def render(tmp_path, truth, found):
    """Draw on a grey image of 40 pixels, and look at it 10 times as large."""
    file = str(tmp_path / 'image.png')
    mmcv.imwrite(np.full((40, 40, 3), 100, np.uint8), file)
    figure = plt.figure(figsize=(4, 4), dpi=100)
    axis = figure.add_axes([0, 0, 1, 1])
    axis.axis('off')
    instances = [dict(bbox=box) for box in truth]
    draw_detections.draw_image(
        axis, dict(img_path=file, instances=instances), found, 'ABCDEF')
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format='rgba', dpi=100)
        pixels = np.frombuffer(buffer.getvalue(), np.uint8)
    pixels = pixels.reshape(400, 400, 4)[..., :3].astype(int)
    return pixels, figure


def rgb(label):
    color = matplotlib.colors.to_rgb(draw_detections.COLORS[label])
    return np.round(np.array(color) * 255).astype(int)


def test_a_predicted_box_is_where_it_should_be(tmp_path):
    found = boxes(([10, 15, 25, 30], 1, 0.9))
    pixels, _ = render(tmp_path, [], found)
    for x, y in (100, 250), (249, 250), (150, 300), (150, 150):
        # an edge is where the box says, to a pixel of the picture
        near = pixels[y - 1:y + 2, x - 1:x + 2].reshape(-1, 3)
        assert np.abs(near - rgb(1)).sum(axis=1).min() < 10
    assert (pixels[200, 200] == 100).all()


def test_a_true_box_is_dashed_in_black_and_white(tmp_path):
    pixels, _ = render(tmp_path, [[10, 15, 25, 30]], boxes())
    edge = pixels[151:299, 100].mean(axis=1)
    assert (edge < 60).sum() > 40 and (edge > 200).sum() > 40
    assert (pixels[200, 200] == 100).all()


def boxes_of_labels(figure):
    renderer = figure.canvas.get_renderer()
    return [text.get_bbox_patch().get_window_extent(renderer)
            for text in figure.axes[0].texts]


@pytest.mark.parametrize('box', [
    [10, 15, 25, 30], [0, 0, 12, 12], [30, 30, 40, 40], [0, 20, 40, 40]])
def test_labels_do_not_cover_one_another(tmp_path, box):
    found = boxes(*((box, label, 0.9 - 0.1 * label) for label in range(2)))
    _, figure = render(tmp_path, [], found)
    labels = boxes_of_labels(figure)
    assert len(labels) == 2
    for a, b in itertools.combinations(labels, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(width, height) < 2
    for label in labels:
        assert label.x0 > -3 and label.y0 > -3
        assert label.x1 < 403 and label.y1 < 403


def test_the_best_labels_are_kept_where_there_is_no_room(tmp_path):
    found = boxes(*(([10, 15, 25, 30], 0, score) for score in
                    (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)))
    _, figure = render(tmp_path, [], found)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[0] == 'A 0.90'
    assert 2 <= len(texts) < 6 and texts == sorted(texts, reverse=True)


def test_labels_name_class_and_score(tmp_path):
    found = boxes(([10, 15, 25, 30], 2, 0.876), ([0, 0, 9, 9], 0, 0.5))
    _, figure = render(tmp_path, [], found)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ['C 0.88', 'A 0.50']


def test_a_mask_shines_through(tmp_path):
    found = boxes(([10, 10, 30, 30], 0, 0.9))
    found.masks = np.zeros((1, 40, 40), bool)
    found.masks[:, 15:25, 15:25] = True
    pixels, _ = render(tmp_path, [], found)
    np.testing.assert_allclose(
        pixels[200, 200], 0.5 * rgb(0) + 50, atol=1.5)
    assert (pixels[130, 130] == 100).all()


@pytest.fixture(params=['retinanet', 'mask-rcnn'])
def demo(request, shapes, tmp_path, monkeypatch):
    """A demo config and a checkpoint of its untrained model."""
    monkeypatch.setenv('SHAPES_ROOT', str(shapes))
    config = ROOT / f'configs/demo/{request.param}_r18_fpn_frn_shapes.py'
    init_default_scope('mmdet')
    model = MODELS.build(Config.fromfile(config).model)
    checkpoint = tmp_path / 'untrained.pth'
    meta = dict(dataset_meta=dict(classes=('circle', 'square', 'triangle')))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), checkpoint)
    return str(config), str(checkpoint)


def test_detections_of_a_demo_model(demo, tmp_path):
    def draw(name, score):
        out = tmp_path / 'new folder' / name
        draw_detections.main(
            [*demo, '--out', str(out), f'--score-thr={score}', '--num=3',
             '--cfg-options', 'model.test_cfg.max_per_img=3',
             'model.test_cfg.rcnn.max_per_img=3'])
        return plt.imread(out)

    with_boxes = draw('boxes.png', 0.0)
    without = draw('none.png', 1.0)
    # 3 images: 2 columns and 2 rows of 3.2 inches, at 120 dots
    assert with_boxes.shape[1] == without.shape[1] == 768
    assert with_boxes.shape[0] > 768
    assert (with_boxes[:768] != without[:768]).any()


@pytest.fixture
def arguments(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv('SHAPES_ROOT', str(shapes))
    checkpoint = tmp_path / 'checkpoint.pth'
    checkpoint.touch()
    config = ROOT / 'configs/demo/retinanet_r18_fpn_frn_shapes.py'
    return [str(config), str(checkpoint), f'--out={tmp_path / "a.png"}']


@pytest.mark.parametrize('position, name', [(0, 'config'), (1, 'checkpoint')])
def test_a_missing_file_is_named(arguments, position, name):
    arguments[position] = 'no/such/file'
    with pytest.raises(SystemExit) as error:
        draw_detections.main(arguments)
    assert error.value.code.endswith(f'{name}: no file no/such/file')


def test_missing_data_are_named(arguments, monkeypatch):
    monkeypatch.setenv('SHAPES_ROOT', '/no/such')
    with pytest.raises(SystemExit) as error:
        draw_detections.main(arguments)
    assert 'test_dataloader.dataset.data_root: no folder /no/such' in (
        error.value.code)


def test_a_checkpoint_of_another_norm_is_refused(demo, tmp_path):
    with pytest.raises(SystemExit, match='the model has LN'):
        draw_detections.main(
            [*demo, f'--out={tmp_path / "a.png"}',
             '--cfg-options', 'model.norm_cfg=LN'])


@pytest.mark.parametrize('option', ['--num=0', '--score-thr=1.5'])
def test_a_bad_option_is_named(arguments, capsys, option):
    with pytest.raises(SystemExit):
        draw_detections.main([*arguments, option])
    name, value = option.split('=')
    assert f'argument {name}: {value!r} is not' in capsys.readouterr().err


@pytest.mark.parametrize('device', ['nonsense', 'cuda:99'])
def test_a_device_that_is_not_there_is_named(arguments, device):
    with pytest.raises(SystemExit, match=f'--device: {device} is not to be'):
        draw_detections.main([*arguments, '--device', device])


@pytest.mark.parametrize('content', [b'', b'text', b'PK\x03\x04 cut short'])
def test_a_broken_checkpoint_is_named(arguments, tmp_path, content):
    (tmp_path / 'checkpoint.pth').write_bytes(content)
    with pytest.raises(SystemExit, match='checkpoint.pth cannot be loaded'):
        draw_detections.main(arguments)
    assert not (tmp_path / 'a.png').exists()


def test_a_config_without_test_data_is_named(arguments, tmp_path):
    config = tmp_path / 'mine.py'
    config.write_text(f"_base_ = '{arguments[0]}'\ntest_dataloader = None\n")
    with pytest.raises(SystemExit, match='test_dataloader: .*mine.py has no'):
        draw_detections.main([str(config), *arguments[1:]])


# --- both ---


@pytest.mark.parametrize('main, words', [
    (draw_detections.main, ['config.py', 'checkpoint.pth']),
    (plot_training.main, ['work_dir'])])
@pytest.mark.parametrize('out, problem', [
    ('pics', 'choose .png or .pdf'), ('pics.xyz', 'choose .png or .pdf'),
    ('folder', 'choose .png or .pdf'), ('', 'choose .png or .pdf'),
    ('.png', 'choose .png or .pdf'), ('folder.png', 'is a folder')])
def test_a_picture_that_cannot_be_is_refused(
        tmp_path, monkeypatch, capsys, main, words, out, problem):
    monkeypatch.chdir(tmp_path)
    for name in 'folder', 'folder.png':
        (tmp_path / name).mkdir()
    with pytest.raises(SystemExit) as error:
        main([*words, '--out', out])
    assert error.value.code == 2
    assert f'argument --out: {out}' in (said := capsys.readouterr().err)
    assert problem in said
    assert len(list(tmp_path.iterdir())) == 2


# --- plot_training.py ---


def log(work_dir, time, records, resume=False, end='\n'):
    folder = work_dir / time / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'config.py').write_text(f'load_from = None\nresume = {resume}\n')
    lines = '\n'.join(json.dumps(record) for record in records)
    (folder / 'scalars.json').write_text(lines + end)


def train(*steps, loss=1.0):
    return [dict(lr=0.1, loss=loss, loss_cls=0.5, step=step) for step in steps]


def val(step, ap, key='coco/bbox_mAP'):
    return [{key: ap, 'time': 0.1, 'step': step}]


def test_reads_a_training(tmp_path):
    # validated by epochs, of 25 steps, and by steps
    for name, steps in ('epochs', (1, 2)), ('iterations', (20, 40)):
        log(tmp_path / name, '20260101_000000',
            train(10, 20) + val(steps[0], 0.25)
            + train(30, 40, loss=0.5) + val(steps[1], 0.75))
        losses, aps = plot_training.read_training(tmp_path / name)
        assert losses == [(10, 1.0), (20, 1.0), (30, 0.5), (40, 0.5)]
        assert aps == {'bbox_mAP': [(20, 0.25), (40, 0.75)]}


def test_reads_boxes_and_masks_but_not_what_coco_could_not_measure(tmp_path):
    log(tmp_path, '20260101_000000',
        train(10) + val(1, -1.0) + val(1, 0.5, 'coco/segm_mAP_50')
        + val(1, 0.1, 'coco/bbox_mAP_s'))
    _, aps = plot_training.read_training(tmp_path)
    assert aps == {'segm_mAP_50': [(10, 0.5)]}


def test_takes_the_newest_training(tmp_path):
    log(tmp_path, '20260101_000000', train(10, 20, 30, loss=9))
    log(tmp_path, '20260102_000000', train(20, 40))
    # a test, and a training that died before its first log
    log(tmp_path, '20260103_000000', [], end='')
    assert plot_training.read_training(tmp_path)[0] == [(20, 1), (40, 1)]


def test_joins_what_was_resumed(tmp_path):
    log(tmp_path, '20260101_000000', train(10, 20, loss=9))
    log(tmp_path, '20260102_000000', train(10, 20, 30, 40, loss=3))
    log(tmp_path, '20260103_000000', train(30, 40, 50, loss=2), resume=True)
    log(tmp_path, '20260104_000000', train(50, 60, loss=1), resume=True)
    losses, _ = plot_training.read_training(tmp_path)
    assert losses == [(10, 3), (20, 3), (30, 2), (40, 2), (50, 1), (60, 1)]


def test_reads_the_log_of_a_killed_training(tmp_path):
    log(tmp_path, '20260101_000000', train(10, 20), end='\n{"loss": 1')
    assert len(plot_training.read_training(tmp_path)[0]) == 2


@pytest.mark.parametrize('records', [train(10, 20), train(10) + val(1, 0.5)])
def test_draws_a_training(tmp_path, records):
    log(tmp_path / 'run', '20260101_000000', records)
    out = tmp_path / 'new folder/training.png'
    plot_training.main([str(tmp_path / 'run'), '--out', str(out)])
    height, width = plt.imread(out).shape[:2]
    # a second plot below the first where there is AP to show
    assert width == 840
    assert height == (720 if len(records) == 2 and 'loss' not in records[1]
                      else 420)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(SystemExit, match='none does not exist'):
        plot_training.main([str(tmp_path / 'none'), '--out=a.png'])


def test_a_folder_without_a_training_is_named(tmp_path):
    log(tmp_path, '20260101_000000', val(0, 0.5))
    with pytest.raises(SystemExit, match='has no logged training'):
        plot_training.main([str(tmp_path), '--out=a.png'])


def test_a_log_with_other_lines_in_it_is_read(tmp_path):
    log(tmp_path, '20260101_000000', [
        5, [1], None, dict(loss=1.0), dict(loss='high', step=5),
        dict(loss=None, step=6), *train(10, 20),
        {'coco/bbox_mAP': None, 'step': 1}, *val(1, 0.5)])
    file = tmp_path / '20260101_000000/vis_data/scalars.json'
    file.write_bytes(b'\xff\xfe\n' + file.read_bytes() + b'\0\0\n')
    losses, aps = plot_training.read_training(tmp_path)
    assert losses == [(10, 1), (20, 1)]
    assert aps == {'bbox_mAP': [(20, 0.5)]}


def test_a_dollar_in_a_name_is_a_dollar(tmp_path):
    log(tmp_path / 'a$_$b', '20260101_000000', train(10, 20))
    out = tmp_path / 'training.PNG'
    plot_training.main([str(tmp_path / 'a$_$b'), '--out', str(out)])
    assert plt.imread(out, 'png').shape[1] == 840


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    log(tmp_path, '20260101_000000', train(10, 20))
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match='file/a.png cannot be written'):
        plot_training.main([str(tmp_path), f'--out={tmp_path}/file/a.png'])
