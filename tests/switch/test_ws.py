"""Weight standardization by the key: where, what is refused, what loads."""

import copy
from pathlib import Path

import mmdet
import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from mmdet.registry import MODELS
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import load_state_dict, save_checkpoint
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from frn_mmdet import FRN, fold_ws, norm_sites
from frn_mmdet.errors import ConfigError
from frn_mmdet.layers import ConvWS
from frn_mmdet.switch.flow import watch_flow
from frn_mmdet.switch.keep_from_folding import keep_from_folding
from frn_mmdet.switch.norms import NORMS, parse_norm_cfg
from frn_mmdet.switch.stock_settings import adjust_settings
from frn_mmdet.switch.ws import to_ws

WS = dict(type='FRN', ws=True)
# By its path: mmengine does not find a + in a name.
GN_WS = str(Path(mmdet.__file__).parent / '.mim/configs/gn+ws'
            / 'mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py')


def value_of(name, **more):
    groups = dict(num_groups=4) if name in ('GN', 'GFRN') else {}
    return dict(type=name, **groups, **more)


EACH = [name for name in NORMS if name != 'SyncBN']


@pytest.mark.parametrize('detector, name, tlu', [
    *(('RetinaNet', name, i % 2 == 0) for i, name in enumerate(EACH)),
    *(('MaskRCNN', name, i % 2 == 1) for i, name in enumerate(EACH[::2]))])
def test_it_trains_with_every_norm(small, losses, detector, name, tlu):
    """Two steps; what feeds a norm is standardized, what does not is not."""
    model = small(detector, value_of(name, tlu=tlu, ws=True))
    model.init_weights()
    sites = [site for site in norm_sites(model) if site.norm]
    assert all(site.ws for site in sites)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    plain = sum(type(conv) is not ConvWS for conv in convs)
    # Scores and boxes; a mask head's last, too, and RPN's first.
    assert plain == (2 if detector == 'RetinaNet' else 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, 'tau', None) is not None:
                module.tau.fill_(-.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss = losses(model, size=256, with_mask=detector == 'MaskRCNN')
        loss.backward()
        assert loss.isfinite()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    taus = {name: parameter.grad.abs().sum()
            for name, parameter in model.named_parameters()
            if name.endswith('tau')}
    assert bool(taus) == tlu
    # A regression's level without a positive anchor learns nothing.
    assert not [name for name, size in taus.items()
                if size == 0 and 'reg_convs' not in name]


def test_syncbn_builds_and_other_parts_stay(small):
    model = small('RetinaNet', dict(type='SyncBN', ws=True, parts='neck'))
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert (type(module) is ConvWS) == path.startswith('neck'), path


class Feeds(nn.Module):
    """Convolutions that feed a norm by and by, and others."""

    def __init__(self):
        super().__init__()
        for name in ('pooled', 'summed', 'added', 'catted', 'acted', 'gate'):
            self.add_module(name, nn.Conv2d(8, 8, 3, padding=1))
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.bn3, self.bn4 = nn.BatchNorm2d(16), nn.BatchNorm2d(8)
        self.bn5 = nn.BatchNorm2d(8)

    def forward(self, x):
        a = self.bn1(nn.functional.max_pool2d(self.pooled(x), 2, 1))
        b = self.bn2(self.summed(a) + self.added(a))
        c = self.bn3(torch.cat([self.catted(b), b], 1))
        d = self.bn4(self.acted(b).relu())
        return c, self.bn5(b * self.gate(b).sigmoid()), d


def test_what_feeds_a_norm():
    model = Feeds()
    flow = watch_flow(model, lambda m, _: [(
        m(torch.randn(1, 8, 9, 9)), True)])
    assert {path: set(seen.convs) for path, seen in flow.norms.items()} == {
        'bn1': {'pooled'}, 'bn2': {'summed', 'added'}, 'bn3': {'catted'},
        'bn4': set(), 'bn5': set()}


@pytest.mark.parametrize('config, words', [
    ('mmdet::dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
     ['backbone.layer2.0.conv2', 'ModulatedDeformConv2dPack', "'backbone'"]),
    ('mmdet::tood/tood_r50_fpn_1x_coco.py',
     ['bbox_head.cls_decomp', 'TaskDecomposition', "'head'"]),
    ('mmdet::detectors/cascade-rcnn_r50-sac_1x_coco.py',
     ['backbone.conv1', 'ConvAWS2d', "'backbone'"]),
])
def test_what_cannot_be_is_named(build, config, words):
    with pytest.raises(ConfigError) as error:
        build(config, WS)
    for word in [*words, 'cannot be standardized', 'ws=False']:
        assert word in str(error.value)


def test_a_filter_of_one_element_is_named(build):
    class OneByOne(nn.Module):

        def __init__(self, norm_cfg):
            super().__init__()
            self.conv = nn.Conv2d(256, 256, 1, groups=256)
            self.norm = FRN(256)

        def forward(self, xs):
            return [self.norm(self.conv(x)) for x in xs]

    MODELS.register_module(name='OneByOne', module=OneByOne, force=True)
    with pytest.raises(ConfigError, match=r'neck\.1\.conv.* of one element'):
        build('RetinaNet', WS, {'neck': [
            dict(type='FPN', in_channels=[256, 512, 1024, 2048],
                 out_channels=256, num_outs=5),
            dict(type='OneByOne', norm_cfg=None)]})


@pytest.mark.parametrize('norm, checkpoint, stays', [
    ('GN', 'open-mmlab://jhu/resnet50_gn_ws', False),
    (dict(type='GN', ws=True), 'open-mmlab://jhu/resnet50_gn_ws', True),
    (dict(type='GN', ws=True), 'open-mmlab://detectron/resnet50_gn', False),
    ('GN', 'open-mmlab://detectron/resnet50_gn', True),
    (WS, 'open-mmlab://jhu/resnet50_gn_ws', False),
    (WS, 'torchvision://resnet50', False),
    (dict(type='BN', ws=True), 'torchvision://resnet50', False),
    (dict(type='BRN', ws=True), 'torchvision://resnet50', False),
    ('BN', 'torchvision://resnet50', True),
], ids=str)
def test_the_zoos_names_tell(stock, norm, checkpoint, stays):
    init_default_scope('mmdet')
    model = stock('RetinaNet').model
    model.backbone.init_cfg.checkpoint = checkpoint
    said = adjust_settings(model, parse_norm_cfg(norm))
    assert (model.backbone.init_cfg is not None) == stays
    assert any(checkpoint in line for line in said) == (not stays)
    if not stays and 'ws' in checkpoint:
        assert any('trained with GN+WS' in line for line in said)


@pytest.mark.parametrize('norm, stays', [
    ('GN', True), (dict(type='GN', ws=True), True), ('FRN', False),
    (WS, False), ('BN', False)], ids=str)
def test_stock_configs_with_ws(build, stock, norm, stays):
    """Their convolutions are mmcv's, or ours of the same state and maps."""
    init_default_scope('mmdet')
    cfg = stock(GN_WS).model
    adjust_settings(cfg, parse_norm_cfg(norm))
    assert (cfg.backbone.init_cfg is not None) == stays
    narrow = {'backbone.init_cfg': None, 'backbone.depth': 18,
              'neck.in_channels': [64, 128, 256, 512]}
    model = build(GN_WS, norm, narrow)
    assert all(site.ws for site in norm_sites(model) if site.norm)
    own = isinstance(norm, dict)
    assert type(model.backbone.conv1) is (ConvWS if own else ConvWS2d)
    if norm == dict(type='GN', ws=True):
        cfg = stock(GN_WS)
        cfg.merge_from_dict({f'model.{key}': narrow[key] for key in narrow})
        stock_model = MODELS.build(cfg.model)
        load_state_dict(model, stock_model.state_dict(), strict=True)
        x = torch.randn(1, 3, 64, 64)
        stock_model.eval()
        model.eval()
        with torch.no_grad():
            for a, b in zip(model.extract_feat(x),
                            stock_model.extract_feat(x), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.fixture
def through_a_file(tmp_path):

    def _through(first, second, average=False):
        path = str(tmp_path / 'model.pth')
        if average:
            first = ExponentialMovingAverage(first).module
        save_checkpoint(dict(state_dict=first.state_dict()), path)
        load_checkpoint(second, path)

    return _through


@pytest.mark.parametrize('average', [False, True])
@pytest.mark.parametrize('saved, loaded, words', [
    (WS, 'FRN', ['trained with weight', 'has none', 'ws=True']),
    ('FRN', WS, ['trained without', 'has it', 'ws=False']),
    (value_of('GN', ws=True), value_of('GN'), ['ws=True']),
], ids=str)
def test_a_checkpoint_says_what_it_is(small, through_a_file, saved, loaded,
                                      words, average):
    first, second = small('RetinaNet', saved), small('RetinaNet', loaded)
    before = copy.deepcopy(second.state_dict())
    with pytest.raises(ConfigError) as error:
        through_a_file(first, second, average)
    for word in words:
        assert word in str(error.value)
    assert all(torch.equal(value, before[key])
               for key, value in second.state_dict().items())
    with pytest.raises(ConfigError, match='standardization'):
        load_state_dict(second.backbone, first.backbone.state_dict())
    same = small('MaskRCNN', saved, seed=1)
    through_a_file(first, same, average)
    assert torch.equal(same.backbone.conv1.weight,
                       first.backbone.conv1.weight)


def test_parts_that_both_have_are_compared(small, through_a_file):
    neck = dict(type='FRN', ws=True, parts=['neck', 'head'])
    first = small('RetinaNet', neck)
    with pytest.raises(ConfigError, match='the (neck|head) of the checkpo'):
        through_a_file(first, small('RetinaNet', dict(
            type='FRN', parts=['neck', 'head'])))
    through_a_file(first, small('RetinaNet', neck))


def test_weights_without_a_word_are_taken(small):
    """Of other projects, mmcv's among them."""
    first, second = small('RetinaNet', 'FRN'), small('RetinaNet', WS)
    load_state_dict(second, dict(first.state_dict()), strict=True)


@pytest.mark.parametrize('name', ['FRN', 'BN', 'GN'])
def test_folded_it_gives_the_same(small, name):
    model = small('RetinaNet', value_of(name, ws=True)).train()
    x = torch.randn(2, 3, 256, 256)
    with torch.no_grad():
        for module in model.modules():  # statistics that fit
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.
        model._forward(x)
        model.eval()
        want = [y for maps in model._forward(x) for y in maps]
        folded = fold_ws(copy.deepcopy(model))
        fused = fuse_conv_bn(copy.deepcopy(folded))
        for other in (folded, fused):
            assert not any(type(m) is ConvWS for m in other.modules())
            got = [y for maps in other._forward(x) for y in maps]
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    if name == 'BN':
        assert not any(isinstance(m, nn.BatchNorm2d)
                       for m in fused.backbone.modules())
        with pytest.raises(RuntimeError, match='call frn_mmdet.fold_ws'):
            fuse_conv_bn(copy.deepcopy(model))


@pytest.mark.parametrize('kind', [
    dict(kernel_size=3, padding=1, bias=False),
    dict(kernel_size=3, groups=4, stride=2),
    dict(kernel_size=(1, 3), dilation=2, padding_mode='reflect'),
], ids=str)
def test_from_plain_and_back(kind):
    """With the same parameters, hooks and mode; folded it is the same."""
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 16, **kind).eval()
    seen = []
    plain.register_forward_hook(lambda *args: seen.append(1))
    ws = to_ws(plain)
    assert ws.weight is plain.weight
    assert ws.bias is plain.bias
    x = torch.randn(2, 8, 9, 9)
    want = ws(x)
    folded = fold_ws(ws)
    assert type(folded) is nn.Conv2d
    assert repr(folded) == repr(plain)
    assert vars(folded).keys() == vars(plain).keys()
    torch.testing.assert_close(folded(x), want)
    assert len(seen) == 2
    assert ws.weight is plain.weight


def test_the_eps_of_mmcvs_stays():
    assert to_ws(ConvWS2d(4, 8, 3, eps=.5)).eps == .5
    assert to_ws(nn.Conv2d(4, 8, 3)).eps == ConvWS2d(4, 8, 3).eps
    with pytest.raises(ValueError, match='one element'):
        to_ws(nn.Conv2d(1, 8, 1))


def prune_twice(conv):
    prune.l1_unstructured(conv, 'weight', .3)
    prune.random_unstructured(conv, 'weight', .3)
    prune.l1_unstructured(conv, 'bias', .3)


def train_a_step(conv, x):
    conv(x).square().sum().backward()
    torch.optim.SGD(conv.parameters(), lr=.1).step()


COMPUTED = {
    'pruned': prune_twice,
    'weight_norm, by a hook': weight_norm,
    'weight_norm': parametrizations.weight_norm,
    'spectral_norm, by a hook': spectral_norm,
    'spectral_norm': parametrizations.spectral_norm,
    'orthogonal': parametrizations.orthogonal,
}


@pytest.mark.parametrize('name', COMPUTED)
def test_what_computes_a_weight_is_folded_with_it(name):
    """Also after a step, when what a hook had set is old."""
    torch.manual_seed(0)
    conv, x = ConvWS(4, 8, 3), torch.randn(2, 4, 7, 7)
    COMPUTED[name](conv)
    model = nn.Sequential(conv, nn.ReLU())
    train_a_step(conv, x)
    model.eval()
    with torch.no_grad():
        want = model(x)
    folded = copy.deepcopy(model)
    assert fold_ws(folded) is folded
    assert type(folded[0]) is nn.Conv2d
    assert 'weight' in folded[0].state_dict()
    for again in (folded, copy.deepcopy(folded), model):
        torch.testing.assert_close(again(x), want)


def test_a_weight_that_nobody_knows_is_not_folded():
    conv = ConvWS(4, 8, 3)
    weight = conv.weight
    del conv._parameters['weight']
    conv.own = weight
    conv.register_forward_pre_hook(
        lambda module, args: setattr(module, 'weight', module.own * 2))
    model = nn.Sequential(nn.ReLU(), conv, ConvWS(8, 8, 3))
    x = torch.randn(2, 4, 7, 7)
    want = model(x)
    with pytest.raises(ValueError, match='^1: its weight is no parameter'):
        fold_ws(model)
    assert torch.equal(model(x), want)


def test_a_convolution_alone_is_folded():
    conv, x = ConvWS(4, 8, 3), torch.randn(2, 4, 7, 7)
    folded = fold_ws(conv)
    assert type(folded) is nn.Conv2d
    torch.testing.assert_close(folded(x), conv(x))


def test_fuse_conv_bn_leaves_one_with_a_bias_alone():
    """It could not refuse; see the layer."""
    torch.manual_seed(0)
    module = ConvModule(4, 8, 3, bias=True, norm_cfg=dict(type='BN'),
                        conv_cfg=dict(type='frn_mmdet.ConvWS')).eval()
    module.bn.running_mean.normal_()
    x = torch.randn(2, 4, 9, 9)
    want = module(x)
    flow = watch_flow(module, lambda m, _: [(m(x), True)])
    assert keep_from_folding(module, flow) == []
    torch.testing.assert_close(fuse_conv_bn(copy.deepcopy(module))(x), want)
    torch.testing.assert_close(fuse_conv_bn(fold_ws(module))(x), want)


@pytest.mark.parametrize('norm, backend', [
    ('FRN', 'aot_eager'),
    pytest.param('FRN', 'inductor', marks=pytest.mark.slow),
    pytest.param('BRN', 'inductor', marks=pytest.mark.slow)])
def test_a_compiled_stage_trains(small, norm, backend):
    """In one graph, its weights changed by way of ``.data``."""
    stage = small('RetinaNet', dict(type=norm, ws=True)).backbone.layer2
    stages = stage.train(), copy.deepcopy(stage)
    runs = stage, torch.compile(stages[1], fullgraph=True, backend=backend)
    for _ in range(2):
        x = torch.randn(2, 8, 16, 16)
        for run in runs:
            run(x).square().mean().backward()
        for a, b in zip(*(m.parameters() for m in stages), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
            for parameter in (a, b):
                parameter.data.sub_(parameter.grad, alpha=.5)
                parameter.grad = None
    for module in stages:
        module.eval()
    with torch.no_grad():
        want, got = (run(x) for run in runs)
    torch.testing.assert_close(want, got, rtol=1e-4, atol=1e-4 * want.std())


def test_from_bn_is_not_for_it():
    with pytest.raises(ConfigError, match='from_bn: with ws=True it takes'):
        parse_norm_cfg(dict(type='FRN', ws=True, from_bn=10))
    plan = parse_norm_cfg(dict(type='FRN', ws=True, from_bn=False))
    assert plan.scratch
    assert not parse_norm_cfg(WS).converts
    assert not parse_norm_cfg(dict(type='BRN', ws=True)).converts


def test_weights_of_bn_are_refused(small):
    bn = small('RetinaNet', dict(type='BN', parts='backbone'))
    with pytest.raises(ConfigError, match='FRN .*checkpoint has BN there|'
                       'standardization'):
        load_state_dict(small('RetinaNet', WS), dict(bn.state_dict()))
