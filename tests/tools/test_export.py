"""The way out of PyTorch as a user takes it: exported, checked."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from scripts import load

ROOT = Path(__file__).parents[2]
# Two levels: symbolic shapes are what an export takes its time for.
CONFIG = ROOT / 'configs/small_batch/retinanet_r18_fpn_bccd.py'
NORM = dict(type='FRN', ws=True, learnable_eps=True)


def run(tool, *args):
    load(tool).main([str(arg) for arg in args])


@pytest.fixture
def images(tmp_path):
    """Four, of two sizes, with blocks to be found."""
    random = np.random.default_rng(0)
    folder = tmp_path / 'images'
    folder.mkdir()
    for i in range(4):
        blocks = random.integers(0, 255, (4, 4 + i % 2, 3), np.uint8)
        cv2.imwrite(str(folder / f'{i}.png'),
                    cv2.resize(blocks, None, fx=32, fy=32))
    return folder


def write_checkpoint(path, seed):
    """Write weights as if trained: scores are spread."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(CONFIG)
    cfg.model.norm_cfg = NORM
    torch.manual_seed(seed)
    model = MODELS.build(cfg.model)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape)
    model.bbox_head.retina_cls.weight.data *= 4
    model.bbox_head.retina_reg.weight.data *= 10
    model.bbox_head.retina_cls.bias.data.fill_(-2.)
    torch.save({'state_dict': model.state_dict(), 'meta': {
        'dataset_meta': {'classes': ('a', 'b', 'c')}}}, path)


def test_it_is_exported_and_finds_what_predict_does(
        tmp_path, images, capsys):
    write_checkpoint(tmp_path / 'a.pth', seed=0)
    write_checkpoint(tmp_path / 'b.pth', seed=1)
    norm = [f'model.norm_cfg.{key}={value}' for key, value in NORM.items()]
    run('export', CONFIG, tmp_path / 'a.pth', tmp_path / 'a.onnx',
        '--cfg-options', *norm)
    assert capsys.readouterr().out.endswith('a.onnx\n')

    def check(checkpoint, *sizes, options=()):
        run('export', CONFIG, tmp_path / checkpoint, tmp_path / 'a.onnx',
            '--check', '--images', images, '--sizes', *sizes,
            '--cfg-options', *norm, *options)

    check('a.pth', 96, 128)
    rows = [[cell.strip() for cell in line.split('|')[1:-1]]
            for line in capsys.readouterr().out.splitlines()[-8:]]
    assert [row[:4] for row in rows] == [
        [runtime, size, batch, '4'] for size in ('96', '128')
        for batch in '13' for runtime in ('onnxruntime', 'openvino')]
    assert all(int(row[4]) > 50 and row[5] == '0' for row in rows), rows
    with pytest.raises(SystemExit, match='max_per_img is 9, but the file'):
        check('a.pth', 96, options=['model.test_cfg.max_per_img=9'])
    with pytest.raises(SystemExit, match='Not within 0.001 of the scores'):
        check('b.pth', 96)


@pytest.mark.parametrize('args, words', [
    (['--check'], '--check and --images belong together'),
    (['--images', 'x'], '--check and --images belong together'),
    (['--check', '--images', 'x', '--fp16'], '--check reads OUT'),
    (['--check', '--images', 'x', '--sizes', '0'], 'a whole number of 1'),
])
def test_a_wrong_command_line_is_one_sentence(capsys, args, words):
    with pytest.raises(SystemExit):
        run('export', CONFIG, 'a.pth', 'a.onnx', *args)
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_what_is_not_there_or_not_onnx_is_one_sentence(tmp_path, images):
    write_checkpoint(tmp_path / 'a.pth', seed=0)
    norm = [f'model.norm_cfg.{key}={value}' for key, value in NORM.items()]
    args = ['--images', images, '--cfg-options', *norm]
    for out, words in (('a.pt2', 'OUT: .*a.pt2 does not end in .onnx'),
                       ('a.onnx', 'OUT: no file .*a.onnx; export it')):
        with pytest.raises(SystemExit, match=words):
            run('export', CONFIG, tmp_path / 'a.pth', tmp_path / out,
                '--check', *args)
