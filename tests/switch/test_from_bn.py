"""FRN from BN: every way that weights get in, and what is refused."""

import copy
import pickle

import pytest
import torch
from mmdet.models import ResNet
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from torch import nn

from frn_mmdet import FRN
from frn_mmdet.errors import ConfigError
from frn_mmdet.layers import BRN

LARGE = dict(type='FRN', from_bn=1e6)


def natural(module, seed=0):
    """Give BNs random parameters, and random statistics of about the right
    size: off by a factor, each layer would inherit it from the last.
    """
    generator = torch.Generator().manual_seed(seed)

    def settle(norm, args):
        x, = args
        var, mean = torch.var_mean(x, (0, 2, 3))
        noise = torch.randn(2, len(mean), generator=generator)
        norm.running_var.copy_(var * noise[0].exp())
        norm.running_mean.copy_(mean + .5 * var.sqrt() * noise[1])

    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    module.eval()
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(.5, 1.5, generator=generator)
            norm.bias.normal_(0, .3, generator=generator)
        hooks = [n.register_forward_pre_hook(settle) for n in norms]
        module(torch.randn(8, 3, 96, 96, generator=generator))
    for hook in hooks:
        hook.remove()


def said_in_log(name):
    """The records of a logger from now on."""
    records = []
    logger = MMLogger.get_instance(name)
    logger.handlers[0].emit = lambda r: records.append(r.getMessage())
    return records


def maps_equal(first, second, x, tolerance=1e-3):
    """Of two backbones, in test mode (whose train() returns nothing)."""
    first.eval()
    second.eval()
    with torch.no_grad():
        pairs = list(zip(first(x), second(x), strict=True))
    for a, b in pairs:
        assert ((a - b).abs().max() / a.abs().max()).item() < tolerance


@pytest.fixture
def bn_detector(build):
    """bn_detector(name, options): mmdet's own, BN in its backbone."""

    def _make(name='RetinaNet', options=None, seed=1):
        model = build(name, None, {'backbone.init_cfg': None,
                                   **(options or {})}, seed=seed)
        model.init_weights()
        natural(model.backbone)
        return model.eval()

    return _make


R18 = {'backbone.depth': 18, 'backbone.base_channels': 16,
       'neck.in_channels': [16, 32, 64, 128]}
NARROW = R18 | {'neck.out_channels': 16, 'bbox_head.in_channels': 16,
                'bbox_head.feat_channels': 16}


@pytest.fixture
def torchvision_file(bn_detector, tmp_path):
    """torchvision_file(model): its backbone as torchvision would save it."""

    def _save(model, **more):
        path = tmp_path / 'backbone.pth'
        state = dict(model.backbone.state_dict(), **more)
        state['fc.weight'] = torch.zeros(1000, 2048)
        torch.save(state, path)
        return str(path)

    return _save


def test_the_stock_config_converts_its_checkpoint(
        build, bn_detector, torchvision_file, monkeypatch):
    """The config untouched: torchvision://resnet50, from torch's cache."""
    bn = bn_detector()
    path = torchvision_file(bn)
    from mmengine.runner import checkpoint
    monkeypatch.setattr(checkpoint, 'load_from_http',
                        lambda url, **kwargs: torch.load(path))
    monkeypatch.setattr(checkpoint, 'get_torchvision_models',
                        lambda: dict(resnet50='https://x/resnet50.pth'))
    records = said_in_log('test_stock')
    model = build('RetinaNet', LARGE)
    model.init_weights()
    maps_equal(bn.backbone, model.backbone,
               torch.randn(2, 3, 96, 96))
    text = '\n'.join(records)
    assert 'torchvision://resnet50 was trained with BN and is kept' in text
    assert 'frozen_stages=1 stays' in text
    assert ('torchvision://resnet50 was trained with BN and is converted. '
            'backbone (53): FRN starts from BN, a = 1e+06') in text
    model.train()
    assert not any(p.requires_grad
                   for p in model.backbone.layer1.parameters())
    assert all(p.requires_grad for p in model.backbone.layer2.parameters())
    # neck and heads never had a norm
    assert model.neck.fpn_convs[0].frn.ref_mean is None


BACKBONES = dict(
    MobileNetV2=dict(type='MobileNetV2', widen_factor=.25,
                     norm_cfg=dict(type='BN')),
    ResNetV1d=dict(type='ResNetV1d', depth=50, base_channels=16),
    RegNet=dict(type='RegNet', arch='regnetx_400mf'),
    Res2Net=dict(type='Res2Net', depth=50, scales=4, base_width=26),
    ResNeSt=dict(type='ResNeSt', depth=50, base_channels=16),
    HRNet=dict(type='HRNet', extra=dict(
        stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK',
                    num_blocks=(1, ), num_channels=(16, )),
        stage2=dict(num_modules=1, num_branches=2, block='BASIC',
                    num_blocks=(1, 1), num_channels=(8, 16)),
        stage3=dict(num_modules=1, num_branches=3, block='BASIC',
                    num_blocks=(1, 1, 1), num_channels=(8, 16, 32)),
        stage4=dict(num_modules=1, num_branches=4, block='BASIC',
                    num_blocks=(1, 1, 1, 1), num_channels=(8, 16, 32, 64)))),
    EfficientNet=dict(type='EfficientNet', arch='b0',
                      norm_cfg=dict(type='BN', eps=1e-3)),
)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow)
    if name in ('RegNet', 'Res2Net', 'EfficientNet') else name
    for name in BACKBONES])
def test_no_architecture_is_known_by_name(build, tmp_path, name):
    """Any backbone whose norm comes from norm_cfg; eps is the config's."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    bn = MODELS.build(BACKBONES[name])
    bn.init_weights()
    natural(bn)
    path = str(tmp_path / 'bn.pth')
    torch.save(bn.state_dict(), path)
    options = {'backbone': dict(
        BACKBONES[name], _delete_=True,
        init_cfg=dict(type='Pretrained', checkpoint=path))}
    model = build('RetinaNet', dict(type='FRN', from_bn=1e7, tlu=False,
                                    parts='backbone'),
                  options)
    model.init_weights()
    x = torch.randn(1, 3, 96, 96)
    maps_equal(bn, model.backbone, x)
    assert not any(isinstance(m, nn.BatchNorm2d)
                   for m in model.backbone.modules())


class Features(nn.Module):
    """A detector's neck, by call."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, x):
        return self.detector.extract_feat(x)


@pytest.mark.parametrize('config, options', [
    ('yolof/yolof_r50-c5_8xb8-1x_coco',  # its neck has BN
     {'backbone.depth': 18, 'neck.in_channels': 512}),
    ('centernet/centernet_r18_8xb16-crop512-140e_coco', {}),  # and deconvs
])
def test_norms_that_no_config_names_start_from_bn_too(build, config, options):
    options = {'backbone.init_cfg': None} | options
    bn = build(f'mmdet::{config}.py', None, options)
    natural(Features(bn))
    frn = build(f'mmdet::{config}.py', LARGE, options, seed=1)
    assert frn.switch_outcome.replaced
    result = load_state_dict(frn, bn.state_dict())
    assert result is None
    x = torch.randn(2, 3, 96, 96)
    maps_equal(Features(frn), Features(bn), x)


def test_a_detector_by_load_from(build, bn_detector, tmp_path):
    """Parts that get a norm they never had start fresh, and are named."""
    bn = bn_detector(options=NARROW)
    path = str(tmp_path / 'detector.pth')
    torch.save(dict(state_dict=bn.state_dict(), meta={}), path)
    model = build('RetinaNet', LARGE,
                  dict(NARROW, **{'backbone.init_cfg': None}), seed=2)
    records = said_in_log('test_load_from')
    load_checkpoint(model, path)
    maps_equal(bn.backbone, model.backbone, torch.randn(1, 3, 96, 96))
    assert torch.equal(model.bbox_head.retina_cls.weight,
                       bn.bbox_head.retina_cls.weight)
    assert torch.equal(model.neck.fpn_convs[0].conv.weight,
                       bn.neck.fpn_convs[0].conv.weight)
    text = '\n'.join(records)
    assert 'backbone (20): FRN starts from BN' in text
    assert 'neck (8), bbox_head (8): fresh FRN' in text


def test_norms_in_every_part(small, tmp_path):
    """A detector with BN everywhere; its heads are converted, too."""
    bn = small('MaskRCNN', 'BN', seed=1)
    bn.init_weights()
    natural(bn.backbone)
    path = str(tmp_path / 'detector.pth')
    torch.save(bn.state_dict(), path)
    model = small('MaskRCNN', LARGE, seed=2)
    records = said_in_log('test_every_part')
    load_checkpoint(model, path)
    x = torch.randn(1, 3, 96, 96)
    bn.eval()
    model.eval()
    for a, b in zip(bn.extract_feat(x), model.extract_feat(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    rois = torch.randn(4, 16, 14, 14)
    torch.testing.assert_close(bn.roi_head.mask_head(rois),
                               model.roi_head.mask_head(rois), rtol=1e-3,
                               atol=1e-4)
    assert 'roi_head (8)' in '\n'.join(records)
    assert 'fresh' not in '\n'.join(records)


def test_pretrained_with_a_prefix(build, bn_detector, tmp_path):
    bn = bn_detector(options=NARROW)
    path = str(tmp_path / 'detector.pth')
    torch.save(dict(state_dict=bn.state_dict()), path)
    init_cfg = dict(type='Pretrained', prefix='backbone.', checkpoint=path)
    model = build('RetinaNet', LARGE,
                  dict(NARROW, **{'backbone.init_cfg': init_cfg}))
    model.init_weights()
    maps_equal(bn.backbone, model.backbone, torch.randn(1, 3, 96, 96))


def test_a_part_by_load_checkpoint(build, bn_detector, torchvision_file):
    bn = bn_detector(options=NARROW)
    model = build('RetinaNet', LARGE,
                  dict(NARROW, **{'backbone.init_cfg': None}))
    load_checkpoint(model.backbone, torchvision_file(bn))
    maps_equal(bn.backbone, model.backbone, torch.randn(1, 3, 96, 96))


@pytest.mark.parametrize('path, channels', [
    ('neck.lateral_convs.0', 16), ('backbone.layer1', 8)])
def test_a_part_of_a_part(small, path, channels):
    bn = small('RetinaNet', 'BN', seed=1)
    natural(Features(bn))
    model = small('RetinaNet', LARGE, seed=2)
    load_state_dict(model.get_submodule(path),
                    bn.get_submodule(path).state_dict(), strict=True)
    x = torch.randn(1, channels, 32, 32)
    torch.testing.assert_close(model.eval().get_submodule(path)(x),
                               bn.get_submodule(path)(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('norm', [LARGE, 'BRN'], ids=str)
def test_a_part_within_something_else(small, norm):
    """Whoever averages or distributes a backbone has it as ``module``."""
    bn = small('RetinaNet', dict(type='BN', parts='backbone'), seed=1)
    natural(bn.backbone)
    model = small('RetinaNet', norm, seed=2)
    nn.DataParallel(model.backbone).load_state_dict(
        nn.DataParallel(bn.backbone).state_dict())
    maps_equal(bn.backbone, model.backbone, torch.randn(1, 3, 96, 96))


def test_strictly_nothing_is_left_over(build, bn_detector):
    bn = bn_detector(options=NARROW)
    model = build('RetinaNet', dict(LARGE, parts='backbone'),
                  dict(NARROW, **{'backbone.init_cfg': None}))
    model.load_state_dict(bn.state_dict(), strict=True)
    maps_equal(bn.backbone, model.backbone, torch.randn(1, 3, 96, 96))


def test_thresholds_start_as_relu(build, bn_detector):
    bn = bn_detector(options=NARROW)
    model = build('RetinaNet', LARGE,
                  dict(NARROW, **{'backbone.init_cfg': None}))
    for name, parameter in model.named_parameters():
        if name.endswith('tau'):
            nn.init.constant_(parameter, .5)
    load_state_dict(model, bn.state_dict())
    maps_equal(bn.backbone, model.backbone, torch.randn(1, 3, 96, 96))


def test_a_converted_run_needs_no_bn(small, tmp_path):
    """Saved, then loaded as a test or a resume would, whatever from_bn."""
    bn = small('RetinaNet', dict(type='BN', parts=['backbone', 'neck']),
               seed=1)
    natural(bn.backbone)
    model = small('RetinaNet', dict(type='FRN', from_bn=3), seed=2)
    load_state_dict(model, bn.state_dict())
    path = str(tmp_path / 'run.pth')
    torch.save(dict(state_dict=get_state_dict(model)), path)
    x = torch.randn(1, 3, 96, 96)
    for norm in (dict(type='FRN', from_bn=3), dict(type='FRN', from_bn=50),
                 dict(type='FRN', from_bn=False)):
        again = small('RetinaNet', norm, seed=3)
        load_checkpoint(again, path)
        for a, b in zip(again(x), model(x), strict=True):
            for c, d in zip(a, b, strict=True):
                assert torch.equal(c, d)


def test_frn_weights_from_before_are_as_before(small, tmp_path):
    """Also where the config now makes reference statistics at build."""
    plain = small('RetinaNet', 'FRN', seed=1)
    state = plain.state_dict()
    assert not any('ref_' in key for key in state)
    path = str(tmp_path / 'plain.pth')
    torch.save(state, path)
    init_cfg = dict(type='Pretrained', checkpoint='work_dirs/mine.pth')
    model = small('RetinaNet', 'FRN', {'backbone.init_cfg': init_cfg}, seed=2)
    assert model.backbone.frn1.share == pytest.approx(1 / 11)
    load_checkpoint(model, path)
    x = torch.randn(1, 3, 96, 96)
    for a, b in zip(plain.extract_feat(x), model.extract_feat(x),
                    strict=True):
        assert torch.equal(a, b)


def test_averaging_and_copies(small, tmp_path):
    """EMA copies the model before init_weights() and pairs the buffers."""
    bn = small('RetinaNet', 'BN', seed=1)
    natural(bn.backbone)
    path = str(tmp_path / 'backbone.pth')
    torch.save(bn.backbone.state_dict(), path)
    init_cfg = dict(type='Pretrained', checkpoint=path)
    model = small('RetinaNet', LARGE, {'backbone.init_cfg': init_cfg}, seed=2)
    average = ExponentialMovingAverage(model)
    model.init_weights()
    average.update_parameters(model)
    x = torch.randn(1, 3, 96, 96)
    for other in (average.module, copy.deepcopy(model),
                  pickle.loads(pickle.dumps(model))):
        maps_equal(bn.backbone, other.backbone, x)
    load_state_dict(copy.deepcopy(model).backbone, bn.backbone.state_dict())


@pytest.mark.parametrize('eps', [1e-5, 1e-3])
def test_brn_is_bn(small, eps):
    """In test mode exactly, and its limits are open, not those of step 0."""
    bn = small('MaskRCNN', dict(type='BN', eps=eps), seed=1)
    natural(bn.backbone)
    options = {'backbone.norm_cfg': dict(type='BN', eps=eps)}
    model = small('MaskRCNN', dict(type='BRN', parts='backbone'), options,
                  seed=2)
    load_state_dict(model.backbone, bn.backbone.state_dict())
    x = torch.randn(1, 3, 96, 96)
    maps_equal(bn.backbone, model.backbone, x, 1e-5)
    norms = [m for m in model.modules() if isinstance(m, BRN)]
    assert {norm.limits() for norm in norms} == {(3., 5.)}


def test_a_brn_checkpoint_stays_one(small):
    first, second = (small('MaskRCNN', 'BRN', seed=s) for s in (1, 2))
    load_state_dict(second, first.state_dict())
    assert all(torch.equal(v, second.state_dict()[k])
               for k, v in first.state_dict().items())


def without(state, part):
    return {k: v for k, v in state.items() if part not in k}


@pytest.mark.parametrize('spoil, words', [
    (lambda s: without(s, 'layer3.'),
     ['in part only', 'no BN at 5 of 20', 'backbone.layer3.0.frn1']),
    (lambda s: without(s, 'layer2.1.bn2'),
     ['in part only', 'no BN at 1 of 20', 'backbone.layer2.1.frn2']),
    (lambda s: dict(s, **{'layer2.2.bn1.running_mean': torch.zeros(32)}),
     ['in part only', 'a BN at layer2.2.bn1']),
    (lambda s: {k: v.repeat(2) if v.dim() == 1 else v for k, v in s.items()},
     ['backbone.frn1', '16 channels', 'a BN of 32']),
    (lambda s: {k.replace('bn', 'gn'): v for k, v in s.items()
                if 'running' not in k and 'num_' not in k},
     ['has FRN at backbone.frn1', 'has GN']),
    (lambda s: without(without(s, 'bn'), 'downsample.1'),
     ['has FRN at backbone.frn1', 'no norm']),
])
def test_what_does_not_fit_is_refused_by_name(build, bn_detector, tmp_path,
                                              spoil, words):
    """Before anything is loaded: the part is as it was."""
    bn = bn_detector(options=NARROW)
    path = str(tmp_path / 'backbone.pth')
    torch.save(spoil(dict(bn.backbone.state_dict())), path)
    init_cfg = dict(type='Pretrained', checkpoint=path)
    model = build('RetinaNet', 'FRN',
                  dict(NARROW, **{'backbone.init_cfg': init_cfg}))
    before = copy.deepcopy(model.backbone.state_dict())
    with pytest.raises(ConfigError) as error:
        load_checkpoint(model.backbone, path)
    for word in words:
        assert word in str(error.value)
    assert all(torch.equal(v, before[k])
               for k, v in model.backbone.state_dict().items())


def test_half_a_neck_is_refused(small):
    bn = small('MaskRCNN', 'BN')
    model = small('MaskRCNN', 'FRN')
    state = without(bn.state_dict(), 'neck.fpn_convs.1.bn')
    with pytest.raises(ConfigError, match='neck.fpn_convs.1.frn the first'):
        load_state_dict(model, state)


def test_from_scratch_refuses_a_bn_detector(small):
    model = small('RetinaNet', dict(type='FRN', from_bn=False))
    with pytest.raises(ConfigError, match='has BN there.*from_bn a number'):
        load_state_dict(model, dict(small('RetinaNet', 'BN').state_dict()))


def test_no_checkpoint_no_reference(build):
    """A config that says from scratch stays from scratch."""
    model = build('RetinaNet', 'FRN', {'backbone.init_cfg': None})
    assert not any(m.ref_mean is not None for m in model.modules()
                   if isinstance(m, FRN))


def folded(bn):
    """As Caffe's weights are: the statistics within gamma and beta."""
    with torch.no_grad():
        for norm in bn.modules():
            if isinstance(norm, nn.BatchNorm2d):
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                norm.bias -= norm.running_mean * scale
                norm.weight.copy_(scale)
                norm.running_mean.zero_()
                norm.running_var.fill_(1 - norm.eps)


@pytest.mark.parametrize('average', [
    dict(type='ExpMomentumEMA'), dict(type='ExponentialMovingAverage'),
    dict(type='StochasticWeightAverage')], ids=lambda cfg: cfg['type'])
def test_folded_statistics_can_be_averaged(small, torchvision_file, average):
    """A share of 0 can; an infinite eps became NaN."""
    bn = small('RetinaNet', 'BN', seed=1)
    natural(bn.backbone)
    folded(bn.backbone)
    init_cfg = dict(type='Pretrained', checkpoint=torchvision_file(bn))
    options = {'backbone.init_cfg': init_cfg}
    model = small('RetinaNet', 'FRN', options)
    average = MODELS.build(dict(average, update_buffers=True, model=model))
    model.init_weights()
    for _ in range(3):
        average.update_parameters(model)
    state = average.module.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    x = torch.randn(1, 3, 96, 96)
    maps_equal(bn.backbone, average.module.backbone, x, 1e-5)
    again = small('RetinaNet', 'FRN', options, seed=2)
    load_state_dict(again, state)
    maps_equal(bn.backbone, again.backbone, x, 1e-5)


@pytest.mark.parametrize('part', ['backbone', 'neck'])
def test_each_norm_is_folded_or_not(small, tmp_path, part):
    """A detector from Caffe's weights whose neck has a BN that trained."""
    bn = small('MaskRCNN', 'BN', seed=1)
    natural(Features(bn))
    folded(bn.get_submodule(part))
    path = str(tmp_path / 'detector.pth')
    torch.save(bn.state_dict(), path)
    model = small('MaskRCNN', 'FRN', seed=2)
    records = said_in_log(f'test_each_norm_{part}')
    load_checkpoint(model, path)
    maps_equal(bn.get_submodule(part), model.get_submodule(part),
               torch.randn(1, 3, 96, 96) if part == 'backbone' else
               [torch.randn(1, 8 * 2**i, 64 >> i, 64 >> i) for i in range(4)],
               1e-5)
    for name in ('backbone', 'neck'):
        share = 0 if name == part else pytest.approx(1 / 11)
        assert all(norm.share == share
                   for norm in model.get_submodule(name).modules()
                   if isinstance(norm, FRN))
    count = dict(backbone=20, neck=8)[part]
    # Those of its head are fresh.
    assert any(f'{part} ({count}), roi_head (8): the BN statistics are of no '
               'map' in record for record in records)


def test_one_norm_that_never_trained(build, bn_detector):
    """Not even a part is of one kind."""
    bn = bn_detector(options=NARROW)
    folded(bn.backbone.layer3[1])
    model = build('RetinaNet', 'FRN',
                  dict(NARROW, **{'backbone.init_cfg': None}))
    records = said_in_log('test_one_norm')
    load_state_dict(model, bn.state_dict())
    assert {path for path, norm in model.backbone.named_modules()
            if isinstance(norm, FRN) and norm.share == 0} == {
                'layer3.1.frn1', 'layer3.1.frn2'}
    text = '\n'.join(records)
    assert 'backbone (18): FRN starts from BN, a = 10' in text
    assert 'backbone (2): the BN statistics are of no map' in text
    assert 'never trained (norm_eval=True)' in text


def test_brn_of_folded_statistics_is_said_to_be_right_while_frozen(small):
    bn = small('MaskRCNN', 'BN', seed=1)
    natural(Features(bn))
    folded(bn.backbone)
    model = small('MaskRCNN', 'BRN', seed=2)
    records = said_in_log('test_brn_folded')
    load_state_dict(model, bn.state_dict())
    maps_equal(bn.backbone, model.backbone, torch.randn(1, 3, 96, 96), 1e-5)
    assert any('BRN is right there while it is frozen' in r for r in records)


def test_folded_statistics_say_nothing_of_the_maps(build, bn_detector):
    """So the norm stays BN, whatever a, and a warning says so."""
    bn = bn_detector(options=NARROW)
    folded(bn.backbone)
    model = build('RetinaNet', 'FRN', dict(NARROW, **{
        'backbone.init_cfg': None}))
    records = said_in_log('test_folded')
    load_state_dict(model.backbone, bn.backbone.state_dict())
    maps_equal(bn.backbone, model.backbone, torch.randn(1, 3, 96, 96), 1e-5)
    assert any('folded into gamma and beta' in r for r in records)


@pytest.mark.parametrize('saved, loaded, words', [
    # a norm per pyramid level, in the plugin's own RetinaNet
    ('BN', 'FRN', ['bbox_head.cls_convs.0.0.bn', "leave 'head' out"]),
    (dict(type='BN', parts=['backbone', 'neck'], tlu=True), 'FRN',
     ['threshold', 'the norm it was trained with']),
    (dict(type='BN', parts=['backbone', 'neck'], tlu=True),
     dict(type='FRN', tlu=False), ['threshold', 'tlu=True']),
    ('BRN', 'FRN', ['backbone.frn1', 'has BRN']),
])
def test_other_norms_of_ours_are_refused(small, saved, loaded, words):
    state = small('RetinaNet', saved).state_dict()
    with pytest.raises(ConfigError) as error:
        load_state_dict(small('RetinaNet', loaded), dict(state))
    for word in words:
        assert word in str(error.value)
    with pytest.raises(ConfigError):  # it says itself what it is
        load_state_dict(small('RetinaNet', loaded), state)


def test_a_head_with_another_norm_is_refused(build):
    """Stock ATSS: BN in the backbone, GN in the head."""
    config = 'mmdet::atss/atss_r50_fpn_1x_coco.py'
    options = dict(R18, **{'backbone.init_cfg': None})
    state = build(config, None, options).state_dict()
    with pytest.raises(ConfigError, match="has GN there; leave 'head'"):
        load_state_dict(build(config, 'FRN', options), state)
    model = build(config, dict(type='FRN', parts=['backbone', 'neck']),
                  options)
    load_state_dict(model, state)


@pytest.mark.parametrize('parts', ['neck', ['neck', 'head']])
def test_parts_beside_a_backbone_that_stays_bn(small, parts):
    """They never had a norm, and start fresh."""
    bn = small('MaskRCNN', dict(type='BN', parts='backbone'))
    records = said_in_log(f'test_parts_{parts}')
    model = small('MaskRCNN', dict(type='FRN', parts=parts), {
        'backbone.norm_cfg.type': 'BN'})
    load_state_dict(model, bn.state_dict())
    assert any('neck (8)' in r and 'fresh' in r for r in records)


def test_frn_in_some_parts_and_bn_in_others(small):
    """Each part of a checkpoint may have one or the other."""
    mixed = small('MaskRCNN', dict(type='FRN', parts=['neck', 'head']),
                  seed=1)
    natural(mixed.backbone)
    model = small('MaskRCNN', LARGE, seed=2)
    load_state_dict(model, mixed.state_dict())
    x = torch.randn(1, 3, 96, 96)
    mixed.eval()
    model.eval()
    for a, b in zip(mixed.extract_feat(x), model.extract_feat(x),
                    strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_into_a_model_without_memory(small):
    """meta, then assign: nothing is left there."""
    bn = small('MaskRCNN', 'BN', seed=1)
    natural(bn.backbone)
    model = small('MaskRCNN', dict(LARGE, learnable_eps=True),
                  seed=2).to('meta')
    model.load_state_dict(bn.state_dict(), assign=True)
    assert not any(p.is_meta for p in model.state_dict().values())
    maps_equal(bn.backbone, model.backbone, torch.randn(1, 3, 96, 96))


def test_a_checkpoint_of_the_whole_detector_and_its_average(small, tmp_path):
    bn = small('MaskRCNN', dict(type='BN', parts='backbone'), seed=1)
    natural(bn.backbone)
    path = str(tmp_path / 'detector.pth')
    torch.save(bn.state_dict(), path)
    model = small('MaskRCNN', LARGE, {'init_cfg': dict(
        type='Pretrained', checkpoint=path)}, seed=2)
    average = ExponentialMovingAverage(model)
    model.init_weights()
    average.update_parameters(model)
    maps_equal(bn.backbone, average.module.backbone,
               torch.randn(1, 3, 96, 96))
    # what the checkpoint has no norm for is plain FRN
    frn = model.neck.fpn_convs[0].frn
    assert frn.share == 1
    assert frn.ref_mean.eq(0).all()
    scratch = small('MaskRCNN', dict(type='FRN', from_bn=False), {
        'init_cfg': dict(type='Pretrained', checkpoint=path)})
    assert scratch.init_cfg is None


def test_eps_of_another_norm_is_not_bns(small):
    bn = small('MaskRCNN', 'BN', seed=1)
    natural(bn.backbone)
    model = small('MaskRCNN', LARGE, {'backbone.norm_cfg': dict(
        type='GN', num_groups=8, eps=.1, _delete_=True)}, seed=2)
    load_state_dict(model, bn.state_dict())
    maps_equal(bn.backbone, model.backbone, torch.randn(1, 3, 96, 96))


class HardEps(ResNet):
    """A backbone whose code has a BN of an eps of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hard = nn.BatchNorm2d(3, eps=.1)

    def forward(self, x):
        return super().forward(self.hard(x))


def test_eps_of_the_code_is_not_what_norm_cfg_says(build, monkeypatch):
    """A value of BN leaves such a norm as it is, and says its own eps."""
    monkeypatch.setitem(MODELS.module_dict, 'HardEps', HardEps)
    options = dict(NARROW, **{'backbone.type': 'HardEps',
                              'backbone.init_cfg': None})
    bn = build('RetinaNet', dict(type='BN', parts='backbone'), options)
    natural(bn.backbone)
    bn.backbone.hard.running_var.fill_(.05)
    assert bn.backbone.hard.eps == .1
    model = build(
        'RetinaNet', dict(type='FRN', from_bn=1e8, parts='backbone'), options)
    load_state_dict(model, bn.state_dict())
    maps_equal(bn.backbone, model.backbone, torch.randn(1, 3, 96, 96))


@pytest.mark.parametrize('rename', [
    lambda key: f'backbone.{key}', lambda key: f'features.{key}'])
def test_a_checkpoint_of_which_nothing_fits_is_refused(build, bn_detector,
                                                       tmp_path, rename):
    bn = bn_detector(options=NARROW)
    path = str(tmp_path / 'renamed.pth')
    torch.save({rename(k): v for k, v in bn.backbone.state_dict().items()},
               path)
    model = build('RetinaNet', 'FRN', dict(NARROW, **{
        'backbone.init_cfg': dict(type='Pretrained', checkpoint=path)}))
    with pytest.raises(ConfigError, match='nothing in .*does it need a pref'):
        model.init_weights()


def test_a_bn_of_the_models_own_is_not_left_over(build, bn_detector):
    bn, model = bn_detector(options=NARROW), build(
        'RetinaNet', LARGE, dict(NARROW, **{'backbone.init_cfg': None}))
    for detector in (bn, model):
        detector.backbone.layer2.add_module('hard', nn.BatchNorm2d(4))
    load_state_dict(model, bn.state_dict())


def test_a_bn_without_running_var(small):
    state = small('MaskRCNN', 'BN').state_dict()
    del state['backbone.bn1.running_var']
    with pytest.raises(ConfigError, match='backbone.bn1 without running_var'):
        load_state_dict(small('MaskRCNN', 'FRN'), state)


def test_a_lost_gamma_is_missed(build, bn_detector):
    """A BN may be without gamma and beta, but not without one of them."""
    state = bn_detector(options=NARROW).state_dict()
    del state['backbone.bn1.weight']
    model = build('RetinaNet', dict(LARGE, parts='backbone'),
                  dict(NARROW, **{'backbone.init_cfg': None}))
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert missing == ['backbone.frn1.weight']


def test_a_missing_file_is_said_at_once(build, tmp_path, monkeypatch):
    options = dict(NARROW, **{'backbone.init_cfg': dict(
        type='Pretrained', checkpoint='~/bn.pth')})
    records = said_in_log('test_missing')
    build('RetinaNet', 'FRN', options).init_weights()
    assert any('no such checkpoint: backbone: ~/bn.pth' in r for r in records)
    # a home is one to mmengine, too
    bn = build('RetinaNet', None, options)
    torch.save(bn.backbone.state_dict(), tmp_path / 'bn.pth')
    monkeypatch.setenv('HOME', str(tmp_path))
    model = build('RetinaNet', 'FRN', options, seed=2)
    model.init_weights()
    assert torch.equal(model.backbone.conv1.weight, bn.backbone.conv1.weight)
