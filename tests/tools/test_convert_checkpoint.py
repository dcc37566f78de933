"""convert_checkpoint.py: what it writes, says and refuses."""

import resource
import shutil
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from scripts import load
from torch import nn

from frn_mmdet import FRN, GFRN, GN, IN, LFRN, LN
from frn_mmdet.compare.switch_model import switch_model
from frn_mmdet.layers import BRN

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/pretrained/retinanet_mobilenet-v2_fpn_kangaroo.py'
main = load('convert_checkpoint').main


class Net(nn.Module):
    """Plain PyTorch: norms by name and by index."""

    def __init__(self, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = norm(8)
        self.tail = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), norm(4))

    def forward(self, x):
        return self.tail(torch.relu(self.bn1(self.conv1(x))))


@pytest.fixture
def net(tmp_path):
    """A network with BN in test mode, and its file."""
    torch.manual_seed(0)
    model = Net(nn.BatchNorm2d)
    x = torch.randn(16, 3, 12, 12)
    for _ in range(100):
        model(x)
    path = tmp_path / 'bn.pth'
    torch.save(model.state_dict(), path)
    return model.eval(), path


def test_plain_pytorch_loads_it(net, tmp_path, capsys):
    model, path = net
    out = tmp_path / 'folder/frn.pth'
    main([str(path), str(out), '--norm', 'FRN:from_bn=1000000',
          '--keep-names'])
    other = Net(FRN)
    other.load_state_dict(torch.load(out))
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-4)
    assert '2 BN became FRN, a = 1e+06' in capsys.readouterr().out


@pytest.mark.parametrize('norm, layer', [
    ('GN:num_groups=4', lambda channels: GN(channels, 4)),
    ('IN', lambda channels: IN(channels, affine=True)), ('LN', LN),
    ('GFRN:num_groups=2', lambda channels: GFRN(channels, 2)),
    ('LFRN', LFRN)])
def test_every_norm_of_one_image(net, tmp_path, norm, layer):
    model, path = net
    x = torch.randn(2, 3, 12, 12)
    far = []
    for a in ('1000000', '10'):
        out = tmp_path / f'{a}.pth'
        main([str(path), str(out), '--norm', f'{norm}:from_bn={a}',
              '--keep-names'])
        other = Net(layer)
        other.load_state_dict(torch.load(out))
        assert other.bn1.share == pytest.approx(1 / (1 + float(a)))
        far.append((other(x) - model(x)).abs().max().item())
    assert far[0] < 1e-4 < far[1]


def test_names_of_mmcv_and_the_rest_of_a_checkpoint(net, tmp_path):
    model, path = net
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=3),
                    optimizer=dict(state={})), path)
    out = tmp_path / 'frn.pth'
    main([str(path), str(out)])
    checkpoint = torch.load(out)
    assert checkpoint['meta'] == dict(epoch=3)
    assert 'optimizer' not in checkpoint
    keys = set(checkpoint['state_dict'])
    assert {'frn1.weight', 'frn1.ref_mean', 'tail.1.ref_var',
            'conv1.weight'} < keys
    assert not any('running' in key or 'bn1' in key for key in keys)


def test_brn(net, tmp_path):
    model, path = net
    main([str(path), str(tmp_path / 'brn.pth'), '--norm', 'BRN',
          '--keep-names'])
    other = Net(BRN)
    other.load_state_dict(torch.load(tmp_path / 'brn.pth'))
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(other.eval()(x), model(x))


@pytest.mark.parametrize('folded', [['bn1'], ['bn1', 'tail.1']])
def test_folded_statistics(net, tmp_path, capsys, folded):
    """Each norm is judged alone."""
    model, path = net
    for name in folded:
        norm = model.get_submodule(name)
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
    torch.save(model.state_dict(), path)
    main([str(path), str(tmp_path / 'frn.pth'), '--keep-names'])
    text = capsys.readouterr().out
    assert f'{len(folded)} of them (bn1, ...): the BN statistics are' in text
    assert 'folded into gamma and beta' in text
    other = Net(FRN)
    other.load_state_dict(torch.load(tmp_path / 'frn.pth'))
    shares = {name: other.get_submodule(name).share
              for name in ('bn1', 'tail.1')}
    assert shares == {name: 0 if name in folded else pytest.approx(1 / 11)
                      for name in shares}
    x = torch.randn(2, 8, 12, 12)
    torch.testing.assert_close(other.bn1(x), model.bn1(x))


def test_bn_eps(net, tmp_path):
    model, path = net
    main([str(path), str(tmp_path / 'frn.pth'), '--bn-eps', '0.5'])
    state = torch.load(tmp_path / 'frn.pth')
    torch.testing.assert_close(state['frn1.ref_var'],
                               model.bn1.running_var + .5)


@pytest.fixture
def backbone(tmp_path):
    """Weights of a MobileNetV2, as ImageNet's would be named."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(dict(type='MobileNetV2'))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, .1)
            module.running_var.uniform_(.5, 2)
    path = tmp_path / 'mobilenet.pth'
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def images(shapes, tmp_path):
    """A folder of three images, and something else in it."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for file in sorted((shapes / 'val2017').iterdir())[:3]:
        shutil.copy(file, folder)
    (folder / 'notes.txt').write_text('not an image')
    return folder


def rows(text):
    return {name.strip(): float(value) for name, value in (
        line.strip('|').split('|') for line in text.splitlines()
        if line.startswith('| ') and 'layer ' not in line[:10])}


def test_check_tells_how_far_each_layer_is(backbone, images, tmp_path,
                                           capsys):
    """The larger a, the nearer to BN; the first layer is nearest."""
    found = {}
    for a in (1, 100000000):
        main([str(backbone), str(tmp_path / 'frn.pth'), '--norm',
              f'FRN:from_bn={a}', '--check', str(CONFIG), '--images',
              str(images)])
        text = capsys.readouterr().out
        assert 'mean of 3 images' in text
        found[a] = rows(text)
    # 52 norms, and the four maps of the neck
    assert len(found[1]) == 52 + 4
    assert max(found[100000000].values()) < 1e-2
    assert min(found[1].values()) > max(
        list(found[100000000].values())[:10])
    state = torch.load(tmp_path / 'frn.pth')
    assert state['conv1.frn.ref_share'].item() == pytest.approx(1e-8)


RETINANET = 'retinanet/retinanet_r50_fpn_1x_coco'
YOLOF = 'yolof/yolof_r50-c5_8xb8-1x_coco'  # BN in every part


@pytest.mark.parametrize('name, channels, saved, parts', [
    (RETINANET, [8, 16, 32, 64], '', {'backbone'}),
    (YOLOF, 64, '', {'backbone', 'neck'}),  # there by mmdet's own names
    (YOLOF, 64, 'backbone', {'backbone'}),
])
def test_check_is_right_without_an_init_cfg(images, tmp_path, capsys, name,
                                            channels, saved, parts):
    """All that the detector loads is what is given."""
    cfg = get_config(f'mmdet::{name}.py')
    cfg.merge_from_dict({'model.backbone.depth': 18,
                         'model.backbone.base_channels': 8,
                         'model.backbone.init_cfg': None,
                         'model.backbone.norm_eval': False,
                         'model.neck.in_channels': channels,
                         'test_dataloader.dataset.pipeline.1.scale': (
                             160, 160)})
    cfg.dump(str(tmp_path / 'config.py'))
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean of what was seen
    with torch.no_grad():
        model.extract_feat(60 * torch.randn(4, 3, 128, 128))
    torch.save(dict(state_dict=model.get_submodule(saved).state_dict()),
               tmp_path / 'bn.pth')
    main([str(tmp_path / 'bn.pth'), str(tmp_path / 'frn.pth'), '--norm',
          'FRN:from_bn=1e10', '--check', str(tmp_path / 'config.py'),
          '--images', str(images)])
    found = rows(capsys.readouterr().out)
    assert {path.partition('.')[0] for path in found
            if '.' in path} == parts
    assert max(found.values()) < 1e-5


@pytest.mark.parametrize('args, words', [
    (['--norm', 'GN'], ['num_groups=32', '8 channels of bn1', '8 does']),
    (['--norm', 'GN+WS'], ['--norm', 'GN+WS', 'FRN, GN, LN, IN, BRN']),
    (['--norm', 'IN:affine=false'], ['--norm', 'a place for']),
    (['--norm', 'FRN:from_bn=-1'], ['from_bn', '-1']),
    (['--norm', 'FRN:from_bn=False'], ['--norm', 'from_bn']),
    (['--norm', 'XN'], ["'XN'", 'choose one of']),
    (['--norm', 'FRN:from_bn=[1'], ['is no value']),
    (['--norm', 'FRN:parts=neck'], ['--norm', 'parts']),
    (['--bn-eps', '0'], ['--bn-eps', '0']),
    (['--bn-eps', 'inf'], ['--bn-eps', 'inf']),
    (['--check', 'no/such.py'], ['--check', 'no/such.py cannot be read']),
    (['--check', 'mmdet::no/such.py'], ['--check', 'cannot be read']),
    (['--check', 'mmdet::gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py'],
     ['--check', 'no BN']),
    (['--check', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'],
     ['--check', 'is not of', 'of that shape']),
])
def test_wrong_arguments_are_refused(net, images, tmp_path, args, words):
    """In one sentence, and nothing is written."""
    _, path = net
    out = tmp_path / 'out.pth'
    if '--check' in args:
        args = [*args, '--images', str(images)]
    with pytest.raises(SystemExit) as error:
        main([str(path), str(out), *args])
    assert str(error.value).startswith('error: ')
    for word in words:
        assert word in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize('content, words', [
    (None, ['IN', 'cannot be loaded']),
    (b'not a checkpoint', ['IN', 'cannot be loaded']),
    ({'conv.weight': torch.zeros(3)}, ['IN', 'has no BN']),
    ([1, 2], ['IN', 'holds a list']),
    ({3: torch.zeros(3)}, ['IN', 'holds no weights']),
    ({'a': 'b'}, ['IN', 'holds no weights', 'str']),
    ({'bn.running_mean': torch.zeros(3)}, ['IN', 'bn is no BN']),
    ({'bn.running_mean': torch.tensor(0.)}, ['IN', 'bn is no BN']),
    ({'brn1.running_mean': torch.zeros(3),
      'brn1.running_var': torch.ones(3)}, ['IN', 'brn1 is BRN, not BN']),
    ({'stem.in1.running_mean': torch.zeros(3),  # it tracks them
      'stem.in1.running_var': torch.ones(3)}, ['stem.in1 is IN, not BN']),
])
def test_a_wrong_file_is_refused(tmp_path, content, words):
    path, out = tmp_path / 'in.pth', tmp_path / 'out.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(SystemExit) as error:
        main([str(path), str(out)])
    for word in words:
        assert word in str(error.value)
    assert not out.exists()


def test_check_refuses_another_eps(backbone, images, tmp_path):
    with pytest.raises(SystemExit, match='give --bn-eps 1e-05'):
        main([str(backbone), str(tmp_path / 'out.pth'), '--bn-eps', '0.1',
              '--check', str(CONFIG), '--images', str(images)])


def test_an_image_that_is_none(backbone, images, tmp_path):
    (images / '0.jpg').write_text('junk')
    with pytest.raises(SystemExit, match='--images: .*0.jpg cannot be read'):
        main([str(backbone), str(tmp_path / 'out.pth'), '--check',
              str(CONFIG), '--images', str(images)])


def test_weights_under_the_key_model(net, tmp_path):
    model, path = net
    torch.save(dict(model=model.state_dict()), path)
    main([str(path), str(tmp_path / 'out.pth')])
    assert 'frn1.weight' in torch.load(tmp_path / 'out.pth')['model']


def test_no_place_to_write(net, tmp_path):
    with pytest.raises(SystemExit, match='OUT: .* is a folder'):
        main([str(net[1]), str(tmp_path)])
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match='OUT: .* cannot be written'):
        main([str(net[1]), str(tmp_path / 'file/out.pth')])


def test_a_full_disk(net, tmp_path):
    """Nothing half-written stays."""
    model, path = net
    torch.save(model.state_dict() | {'last': torch.zeros(50000)}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(SystemExit, match='OUT: .* cannot be written'):
            main([str(path), str(tmp_path / 'new/out.pth')])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / 'new').iterdir()) == []


@pytest.fixture
def taken(shapes, tmp_path):
    """taken(norm): what is written, the detector and the config."""
    init_default_scope('mmdet')
    config = tmp_path / 'config.py'
    cfg = Config.fromfile(
        ROOT / 'configs/small_batch/retinanet_r18_fpn_shapes.py')
    cfg.train_dataloader.dataset.data_root = f'{shapes}/'
    cfg.train_dataloader.dataset.pipeline = [
        step for step in cfg.train_dataloader.dataset.pipeline
        if step.type != 'RandomFlip']
    # As mmdet's configs of COCO have it.
    cfg.train_dataloader.batch_sampler = dict(type='AspectRatioBatchSampler')
    cfg.dump(config)
    torch.manual_seed(0)
    switch_model(cfg.model, 'BN')
    model = MODELS.build(cfg.model)
    for name, value in model.state_dict().items():
        if name.endswith(('running_mean', 'running_var')):
            value += torch.rand_like(value)
    torch.save(model.state_dict(), tmp_path / 'bn.pth')

    def _taken(norm, *args):
        out = tmp_path / f'{norm}.pth'
        main([str(tmp_path / 'bn.pth'), str(out), '--norm', norm,
              '--statistics', str(config), '--over', '16', *args])
        return torch.load(out), model, cfg

    return _taken


def test_statistics_of_the_users_images(taken, capsys):
    """Those of the stem, computed anew in float64."""
    state, model, cfg = taken('BN')
    assert 'statistics of 16 images' in capsys.readouterr().out
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    batch = pseudo_collate([dataset[i] for i in range(len(dataset))])
    images = model.data_preprocessor(batch, True)['inputs'].double()
    model.double()
    x = model.backbone.conv1(images)
    torch.testing.assert_close(
        state['backbone.bn1.running_mean'].double(), x.mean((0, 2, 3)),
        rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        state['backbone.bn1.running_var'].double(), x.var((0, 2, 3)),
        rtol=1e-3, atol=1e-4)
    assert set(state) == set(model.state_dict())


def test_a_norm_goes_on_from_them(taken):
    """As from a file that was written between."""
    bn, _, _ = taken('BN')
    frn, _, _ = taken('FRN')
    torch.testing.assert_close(
        frn['backbone.frn1.ref_mean'], bn['backbone.bn1.running_mean'])
    torch.testing.assert_close(
        frn['backbone.frn1.ref_var'], bn['backbone.bn1.running_var'] + 1e-5)


@pytest.mark.parametrize('args, said', [
    (['--over', '15'], '16 images at a time; it has 16, and 15 were'),
    (['--bn-eps', '1e-3'], '--bn-eps is 0.001, but in'),
])
def test_statistics_that_cannot_be_taken(taken, capsys, args, said):
    with pytest.raises(SystemExit) as error:
        taken('BN', *args)
    assert said in str(error.value)


def test_folded_statistics_are_not_replaced(taken, tmp_path, capsys):
    state, model, _ = taken('BN')
    model.backbone.bn1.reset_running_stats()
    torch.save(model.state_dict(), tmp_path / 'bn.pth')
    with pytest.raises(SystemExit, match='those of backbone.bn1 in .* are'):
        main([str(tmp_path / 'bn.pth'), str(tmp_path / 'out.pth'),
              '--statistics', str(tmp_path / 'config.py')])
