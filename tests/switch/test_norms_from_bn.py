"""GN, IN, LN, GFRN and LFRN go on from BN as FRN does: see test_from_bn."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from frn_mmdet import GN, switch_norms
from frn_mmdet.errors import ConfigError
from frn_mmdet.switch.norms import NORMS, parse_norm_cfg

OTHERS = ['GN', 'IN', 'LN', 'GFRN', 'LFRN']
# What mmdet's configs ask of a ResNet-50, of a small one.
R18 = {'backbone.depth': 18, 'backbone.base_channels': 32,
       'neck.in_channels': [32, 64, 128, 256], 'neck.out_channels': 32}
HEADS = {
    'RetinaNet': {'bbox_head.in_channels': 32, 'bbox_head.feat_channels': 32,
                  'bbox_head.stacked_convs': 1},
    'MaskRCNN': {
        'rpn_head.in_channels': 32, 'rpn_head.feat_channels': 32,
        'roi_head.bbox_roi_extractor.out_channels': 32,
        'roi_head.bbox_head.in_channels': 32,
        'roi_head.bbox_head.fc_out_channels': 32,
        'roi_head.mask_roi_extractor.out_channels': 32,
        'roi_head.mask_head.in_channels': 32,
        'roi_head.mask_head.conv_out_channels': 32},
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': {
        'bbox_head.in_channels': 32, 'bbox_head.feat_channels': 32,
        'bbox_head.stacked_convs': 1},
}


def of(norm, **kwargs):
    """A value of norm_cfg with groups that divide small layers."""
    groups = dict(num_groups=8) if 'num_groups' in NORMS[norm].defaults else {}
    return dict(type=norm, **groups, **kwargs)


@pytest.fixture(scope='module')
def bn_file(tmp_path_factory):
    """A ResNet-18 that was trained with BN, nearly, and its file."""
    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')
    torch.manual_seed(0)
    bn = MODELS.build(dict(type='ResNet', depth=18, base_channels=32))
    bn.init_weights()
    _settle(bn)
    path = tmp_path_factory.mktemp('bn') / 'resnet18.pth'
    torch.save(bn.state_dict(), path)
    return bn, str(path)


@torch.no_grad()
def _settle(module):
    """Give BNs statistics of about their maps, gamma and beta at random."""

    def settle(norm, args):
        var, mean = torch.var_mean(args[0], (0, 2, 3))
        noise = torch.randn(2, len(mean))
        norm.running_var.copy_(var * (noise[0] / 2).exp())
        norm.running_mean.copy_(mean + .5 * var.sqrt() * noise[1])
        norm.weight.uniform_(.5, 1.5)
        norm.bias.normal_(0, .3)

    hooks = [norm.register_forward_pre_hook(settle)
             for norm in module.modules() if isinstance(norm, _BatchNorm)]
    module.eval()
    module(torch.randn(4, 3, 96, 96))
    for hook in hooks:
        hook.remove()


def log_of(name):
    records = []
    logger = MMLogger.get_instance(name)
    logger.handlers[0].emit = lambda r: records.append(r.getMessage())
    return records


@torch.no_grad()
def distance(first, second):
    """Of the maps of two backbones in test mode, the largest of any."""
    x = torch.randn(2, 3, 96, 96)
    first.eval()  # mmdet's returns nothing
    second.eval()
    return max(((a - b).abs().max() / a.abs().max()).item()
               for a, b in zip(first(x), second(x), strict=True))


def with_file(path):
    return {'backbone.init_cfg': dict(type='Pretrained', checkpoint=path)}


def share_0(module):
    """Let norms be BN in test mode, by their state dict."""
    state = module.state_dict()
    for key, value in state.items():
        if key.endswith('ref_share'):
            value.zero_()
    load_state_dict(module, state)


@pytest.mark.parametrize('config', HEADS)
def test_a_stock_detector_of_group_norm(build, bn_file, config):
    """Converted, frozen stages kept, one line of log; s = 0 is BN."""
    bn, path = bn_file
    records = log_of(f'gn_{config[:6]}')
    model = build(config, 'GN', R18 | HEADS[config] | with_file(path))
    model.init_weights()
    norms = [m for m in model.backbone.modules() if isinstance(m, GN)]
    assert len(norms) == 20
    assert all(norm.share == pytest.approx(1 / 11) for norm in norms)
    assert all(type(m) is GN for m in model.modules()
               if isinstance(m, nn.GroupNorm | _BatchNorm))
    said = [text for text in records if 'was trained with BN and' in text]
    assert said == [f'{path} was trained with BN and is converted. backbone '
                    '(20): GN starts from BN, a = 10 (from_bn)']
    model.train()
    assert model.backbone.frozen_stages == 1
    assert not any(p.requires_grad
                   for p in model.backbone.layer1.parameters())
    assert all(p.requires_grad for p in model.backbone.layer2.parameters())
    for name, value in bn.state_dict().items():
        if name.endswith('conv1.weight'):
            assert torch.equal(model.backbone.state_dict()[name], value)
    assert distance(bn, model.backbone) > .01
    share_0(model)
    assert distance(bn, model.backbone) < 1e-5


def test_the_zoo_checkpoint_is_kept_and_said(build, monkeypatch, bn_file):
    from mmengine.runner import checkpoint
    monkeypatch.setattr(checkpoint, 'load_from_http',
                        lambda url, **kwargs: torch.load(bn_file[1]))
    monkeypatch.setattr(checkpoint, 'get_torchvision_models',
                        lambda: dict(resnet50='https://x/resnet50.pth'))
    records = log_of('gn_zoo')
    model = build('RetinaNet', 'GN', R18 | HEADS['RetinaNet'])
    model.init_weights()
    assert any(
        'changed: backbone: torchvision://resnet50 was trained with BN and '
        'is kept, GN starts from its statistics (from_bn=10); '
        'frozen_stages=1 stays' in text for text in records)
    assert model.backbone.gn1.share == pytest.approx(1 / 11)


@pytest.mark.parametrize('norm', OTHERS)
def test_every_norm_at_every_share(small, norm):
    """A whole detector by load_from: neck and head start from BN, too."""
    bn = small('MaskRCNN', 'BN', seed=1)
    bn.init_weights()
    _settle(bn.backbone)
    far = []
    for from_bn in (1e7, 10, 0):
        model = small('MaskRCNN', of(norm, from_bn=from_bn), seed=2)
        load_state_dict(model, bn.state_dict())
        shares = [m.share for m in model.backbone.modules()
                  if hasattr(m, 'share')]
        assert shares == [pytest.approx(1 / (1 + from_bn))] * len(shares)
        far.append(distance(bn.backbone, model.backbone))
    assert far[0] < 1e-4
    assert far[0] < far[1] < far[2]
    for a in bn.state_dict():
        if '.conv.' in a:
            assert torch.equal(bn.state_dict()[a], model.state_dict()[a])


@pytest.mark.parametrize('norm', ['GN', 'IN', 'LFRN'])
def test_a_run_that_is_resumed_and_averaged(small, norm, tmp_path):
    bn = small('RetinaNet', dict(type='BN', parts='backbone'), seed=1)
    _settle(bn.backbone)
    path = str(tmp_path / 'backbone.pth')
    torch.save(bn.backbone.state_dict(), path)
    value = of(norm)
    model = small('RetinaNet', value, with_file(path), seed=2)
    average = ExponentialMovingAverage(model)
    model.init_weights()
    average.update_parameters(model)
    assert distance(model.backbone, average.module.backbone) < 1e-6
    run = str(tmp_path / 'run.pth')
    torch.save(dict(state_dict=model.state_dict()), run)
    for from_bn in (50, False):
        again = small('RetinaNet', value | dict(from_bn=from_bn), seed=3)
        load_checkpoint(again, run)
        assert distance(model.backbone, again.backbone) == 0


@pytest.mark.parametrize('norm', OTHERS)
def test_weights_of_the_norm_itself_load_as_before(small, norm, tmp_path):
    """Bit for bit, also where a reference waits for weights of BN."""
    plain = small('RetinaNet', of(norm, from_bn=False), seed=1)
    state = plain.state_dict()
    assert not any('ref_' in key for key in state)
    # What files from before say: nothing of from_bn.
    for part in state._metadata['']['frn_mmdet'].values():
        part['from_bn'] = None
    path = str(tmp_path / 'plain.pth')
    torch.save(state, path)
    model = small('RetinaNet', of(norm), with_file('work_dirs/mine.pth'),
                  seed=2)
    norms = [m for m in model.backbone.modules() if hasattr(m, 'share')]
    assert len(norms) == 20
    assert all(norm.share == pytest.approx(1 / 11) for norm in norms)
    load_checkpoint(model, path)
    assert distance(plain.backbone, model.backbone) == 0


def test_the_state_dict_of_torchs_own_layers_has_the_same_keys(small):
    """So a file of before fits, and says what it always said."""
    model = small('RetinaNet', of('GN'))
    mark = model.state_dict()._metadata['']['frn_mmdet']['neck']
    assert mark == dict(ws=False, type='GN', eps=1e-5, affine=True, bias=True,
                        num_groups=8, tlu=False, from_bn=10.)
    assert 'neck.lateral_convs.0.gn.weight' in model.state_dict()
    assert 'in1.weight' in {
        key.split('.', 1)[1] for key in small('RetinaNet', 'IN').state_dict()}


@pytest.mark.parametrize('norm', ['GN', 'IN'])
@pytest.mark.parametrize('other, words', [
    ('FRN', 'has FRN'), ('BRN', 'has BRN'),
    (dict(type='BN', tlu=True, parts=['backbone', 'neck']), 'threshold')])
def test_weights_of_others_are_refused(small, norm, other, words):
    state = dict(small('RetinaNet', other).state_dict())
    with pytest.raises(ConfigError, match=words):
        load_state_dict(small('RetinaNet', of(norm)), state)


@pytest.mark.parametrize('norm', ['GN', 'IN'])
@pytest.mark.parametrize('broken, words', [
    (lambda s: s.pop('backbone.bn1.running_var'), 'without running_var'),
    (lambda s: [s.pop(k) for k in list(s) if 'layer2.0.bn1' in k],
     'fits in part only'),
    (lambda s: s.update({k: v[:4] for k, v in s.items() if 'bn1.' in k
                         and v.dim()}), 'of another architecture')])
def test_weights_of_another_network_are_refused(small, norm, broken, words):
    """Every refusal that FRN has."""
    state = dict(small('MaskRCNN', 'BN').state_dict())
    broken(state)
    before = dict(state)
    with pytest.raises(ConfigError, match=words):
        load_state_dict(small('MaskRCNN', of(norm)), state)
    assert state.keys() == before.keys()


@pytest.mark.parametrize('norm', OTHERS)
def test_statistics_of_no_map_leave_bn(small, norm):
    """Caffe's weights have theirs in gamma and beta."""
    bn = small('MaskRCNN', 'BN', seed=1)
    with torch.no_grad():
        for m in bn.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(.5, 1.5)
                m.bias.normal_()
    model = small('MaskRCNN', of(norm), seed=2)
    records = log_of(f'no_map_{norm}')
    load_state_dict(model, bn.state_dict())
    assert distance(bn.backbone, model.backbone) < 1e-5
    assert any(f'so {norm} cannot tell how large the maps were and stays as '
               'BN with frozen statistics' in text for text in records)


@pytest.mark.parametrize('norm', ['GN', 'IN'])
@pytest.mark.parametrize('value', [dict(from_bn=False), dict(ws=True)])
def test_where_it_does_not_go_on_from_bn(small, norm, value):
    model = small('MaskRCNN', of(norm, **value))
    words = 'from_bn a number' if 'from_bn' in value else 'has'
    with pytest.raises(ConfigError, match=words):
        load_state_dict(model, dict(small('MaskRCNN', 'BN').state_dict()))


def test_a_group_norm_of_mmdets_own_code_is_still_one(build):
    """Grid R-CNN builds nn.GroupNorm of 36 groups, and keeps it."""
    model = build(
        'mmdet::grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco.py', 'GN',
        {k: v for k, v in R18.items() if 'out' not in k} | {
            'backbone.init_cfg': None})
    path = 'roi_head.grid_head.norm1'
    assert type(model.get_submodule(path)) is nn.GroupNorm
    assert path not in model.switch_outcome.stayed
    assert path not in model.switch_outcome.replaced
    assert {site.path: site.norm for site in model.switch_outcome.sites}[
        path] == 'GN'
    state = model.state_dict()
    load_state_dict(model, state)
    # No BN can have been in its place.
    del state[f'{path}.bias']
    state[f'{path}.running_mean'] = torch.ones(576)
    state[f'{path}.running_var'] = torch.ones(576)
    with pytest.raises(ConfigError, match=f'GN at {path}'):
        load_state_dict(model, dict(state))


@pytest.mark.parametrize('norm', OTHERS)
def test_a_network_that_no_config_has_built(norm):
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))
    _settle(network)
    x = torch.randn(2, 3, 32, 32)
    near = switch_norms(copy.deepcopy(network), of(norm, from_bn=1e7), x)
    far = switch_norms(copy.deepcopy(network), of(norm), x)
    row = NORMS[norm]
    assert type(near[1]) is row.layer
    assert far[1].share == pytest.approx(1 / 11)
    wanted = network(x)
    assert (near(x) - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (far(x) - wanted).abs().max() > .01 * wanted.abs().max()
    # Of a BN that never saw anything there is nothing to go on from.
    fresh = switch_norms(nn.Sequential(nn.Conv2d(3, 16, 3),
                                       nn.BatchNorm2d(16)), of(norm), x)
    assert fresh[1].ref_mean is None
    # And once more, from what goes on from BN: gamma and beta stay.
    again = switch_norms(copy.deepcopy(far), of(norm, tlu=False), x) if (
        not parse_norm_cfg(norm).tlu) else far
    assert torch.equal(again[1].weight, network[1].weight)
