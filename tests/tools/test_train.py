import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from scripts import path_of

ROOT = Path(__file__).parents[2]
DEMO = ROOT / 'configs/demo/retinanet_r18_fpn_frn_shapes.py'

# Two epochs of eight steps on one core. After so few no box may score high,
# and without any there is no AP.
SHORT = [
    'model.test_cfg.score_thr=0.',
    'train_cfg.max_epochs=2', 'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'train_dataloader.batch_size=2',
    'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    'default_hooks.logger.interval=1', 'train_cfg.val_interval=2'
]

STOCK = "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n"


def steps(log):
    """(epoch, step) of every training step in a log."""
    found = re.findall(r'Epoch\(train\) +\[(\d+)\]\[ *(\d+)/', log)
    return [(int(epoch), int(step)) for epoch, step in found]


@pytest.fixture
def here(shapes, tmp_path, monkeypatch):
    """here(name, *args): a tool in this process; what it logs in a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('SHAPES_ROOT', str(shapes))
    monkeypatch.setenv('LOCAL_RANK', '0')  # mmdet's parser sets it

    def _here(name, *args):
        before = set(tmp_path.rglob('*.log'))
        monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
        # By config and second: another's log would go on, in its own file.
        MMLogger._instance_dict.clear()
        runpy.run_path(str(path_of(name)), run_name='__main__')
        log, = set(tmp_path.rglob('*.log')) - before
        return log.read_text()

    return _here


def test_train_then_test_then_infer(here, tmp_path, shapes):
    # mmdet's parser takes the config wherever it stands.
    log = here('train.py', '--work-dir', tmp_path, DEMO, '--cfg-options',
               *SHORT)
    assert steps(log) == [(e, i) for e in (1, 2) for i in range(1, 9)]
    assert 'model.norm_cfg: FRN' in log
    assert 'coco/bbox_mAP_50' in log
    checkpoint = tmp_path / 'epoch_2.pth'
    assert 'coco/bbox_mAP_50' in here(
        'test.py', '--work-dir', tmp_path, '--cfg-options', *SHORT, '--', DEMO,
        checkpoint)
    # The same file serves mmdet's two ways to infer.
    from mmdet.apis import DetInferencer, inference_detector, init_detector
    image = str(next((shapes / 'val2017').iterdir()))
    model = init_detector(str(DEMO), str(checkpoint), device='cpu')
    result = inference_detector(model, image).pred_instances
    inferencer = DetInferencer(
        str(DEMO), str(checkpoint), device='cpu', show_progress=False)
    scores = inferencer(image, no_save_vis=True)['predictions'][0]['scores']
    assert scores == pytest.approx(result.scores.tolist(), abs=1e-5)
    # Another norm's model must not run on these weights.
    with pytest.raises(SystemExit, match=(
            '^error: the backbone of the checkpoint has FRN and that of the '
            'model has LN; set model.norm_cfg')):
        here('test.py', DEMO, checkpoint, '--work-dir', tmp_path,
             '--cfg-options', 'model.norm_cfg=LN', *SHORT)


@pytest.mark.parametrize('how', [
    signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_an_interrupted_training_resumes(here, tmp_path, environment, how):
    command = [
        sys.executable, ROOT / 'tools/train.py', DEMO, '--work-dir', tmp_path,
        '--cfg-options', *SHORT, 'train_cfg.max_epochs=50'
    ]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell's background job, which CI may be, ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    last = tmp_path / 'last_checkpoint'
    deadline = time.time() + 300
    try:
        while not last.exists() and time.time() < deadline:
            time.sleep(.1)
        process.send_signal(how)
        assert process.wait(60) != 0
    finally:
        process.kill()
    done = int(re.search(r'epoch_(\d+).pth', last.read_text())[1])
    optimizer = torch.load(
        last.read_text(), weights_only=False)['optimizer']
    assert optimizer['state']
    log = here('train.py', '--work-dir', tmp_path, '--resume', 'auto', DEMO,
               '--cfg-options', *SHORT, f'train_cfg.max_epochs={done + 1}')
    assert f'resumed epoch: {done}, iter: {8 * done}' in log
    assert steps(log) == [(done + 1, i) for i in range(1, 9)]


@pytest.mark.slow
def test_two_processes(tool, tmp_path):
    log = tool('dist_train.sh', DEMO, 2, '--work-dir', tmp_path,
               '--cfg', *SHORT)  # as argparse lets one write it
    # 16 images over two processes of two images each: four steps.
    assert steps(log) == [(e, i) for e in (1, 2) for i in range(1, 5)]
    assert 'coco/bbox_mAP_50' in log
    tool('dist_test.sh', DEMO, tmp_path / 'epoch_2.pth', 2, '--work-dir',
         tmp_path, '--cfg-options', *SHORT)


@pytest.mark.parametrize('norm, count', [
    ('FRN', '36 norms, 25 TLU'),
    pytest.param('GN', '36 norms, 0 TLU', marks=pytest.mark.slow),
    pytest.param('BN', '68 norms', marks=pytest.mark.slow),
    pytest.param('LN', '36 norms', marks=pytest.mark.slow),
    pytest.param('IN', '36 norms', marks=pytest.mark.slow),
])
def test_one_key_on_mmdets_own_config(here, hub, tmp_path, shapes, norm,
                                      count):
    """FRN goes on from the config's torchvision:// weights.

    They are in torch.hub as if downloaded before. BN trains from scratch.
    """
    config = tmp_path / 'mine.py'
    config.write_text(f'{STOCK}model = dict(type="frn_mmdet.RetinaNet")\n')
    options = [
        f'model.norm_cfg={norm}', 'model.bbox_head.num_classes=3',
        'model.backbone.depth=18', 'model.neck.in_channels=[64,128,256,512]',
        'model.backbone.init_cfg.checkpoint=torchvision://resnet18',
        'train_dataloader.dataset.indices=4'
    ]
    if 'BN' in norm:
        options.append('model.backbone.init_cfg=None')
    if norm == 'FRN':
        write_resnet18(hub)
    for split in ('train', 'val', 'test'):
        options += [
            f'{split}_dataloader.dataset.data_root={shapes}/',
            f'{split}_dataloader.dataset.metainfo.classes='
            '(circle,square,triangle)',
        ]
        if split != 'train':
            options.append(f'{split}_evaluator.ann_file={shapes}'
                           '/annotations/instances_val2017.json')
    log = here('train.py', config, '--work-dir', tmp_path, '--cfg-options',
               *SHORT, *options, 'train_cfg.max_epochs=1',
               'train_dataloader.dataset.pipeline.2.scale=(256,256)',
               'val_dataloader.dataset.pipeline.1.scale=(256,256)')
    assert count in log
    assert len(steps(log)) == 2
    losses = [float(x) for x in re.findall(r' loss: ([\d.]+)', log)]
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)
    converted = 'was trained with BN and is converted. backbone (20)' in log
    assert converted is (norm == 'FRN')


def write_resnet18(folder):
    """A file with the keys of torchvision's, its statistics not untouched."""
    from mmdet.models import ResNet
    torch.manual_seed(0)
    state = ResNet(18).state_dict()
    for key, value in state.items():
        if key.endswith('running_var'):
            value.uniform_(.5, 2)
    state['fc.weight'] = torch.zeros(1000, 512)
    state['fc.bias'] = torch.zeros(1000)
    torch.save(state, folder / 'resnet18-f37072fd.pth')


def test_usage_of_the_launchers(tool):
    assert 'CONFIG GPUS' in tool('dist_train.sh', DEMO, ok=False)
    assert 'CONFIG CHECKPOINT GPUS' in tool('dist_test.sh', DEMO, ok=False)


@pytest.mark.slow  # tests/switch/test_checkpoint.py has what is saved
def test_a_run_that_started_from_bn_needs_no_bn_file(tool, tmp_path):
    """It resumes and is tested without; a new one says what it misses."""
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')
    model = Config.fromfile(DEMO).model
    model.norm_cfg = dict(type='BN')
    weights = tmp_path / 'bn.pth'
    state = MODELS.build(model).state_dict()
    for key, value in state.items():
        if key.endswith('running_var'):
            value.uniform_(.5, 2)
    torch.save(state, weights)
    options = [
        'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.prefix=backbone.',
        f'model.backbone.init_cfg.checkpoint={weights}', *SHORT]
    work_dir = tmp_path / 'run'

    def train(*args, epochs, ok=True):
        return tool('train.py', DEMO, '--work-dir', work_dir, *args,
                    '--cfg-options', *options,
                    f'train_cfg.max_epochs={epochs}', ok=ok)

    log = train(epochs=1)
    assert f'{weights} was trained with BN and is converted' in log
    weights.unlink()
    log = train('--resume', epochs=2)
    assert steps(log) == [(2, i) for i in range(1, 9)]
    assert 'coco/bbox_mAP_50' in tool(
        'test.py', DEMO, work_dir / 'epoch_2.pth', '--work-dir', tmp_path,
        '--cfg-options', *options)
    state = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    assert state['state_dict']['backbone.frn1.ref_share'].item() == (
        pytest.approx(1 / 11))
    log = train(epochs=1, ok=False)
    assert f'no such checkpoint: backbone: {weights}' in log.splitlines()[-1]
