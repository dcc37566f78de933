import copy
import pickle

import pytest
import torch
from autograd_graph import clips_behind, outputs_of, total
from hidden_activations import PLACED, REFUSED
from mmcv.cnn import ConvModule
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.model.utils import convert_sync_batchnorm, revert_sync_batchnorm
from torch import nn

from frn_mmdet import TLU, norm_sites
from frn_mmdet.errors import ConfigError
from frn_mmdet.switch.apply import apply_plan
from frn_mmdet.switch.norms import parse_norm_cfg


def thresholds(model):
    return {n: p for n, p in model.named_parameters() if n.endswith('tau')}


def set_thresholds(model, value):
    for tau in thresholds(model).values():
        nn.init.constant_(tau, value)


@pytest.mark.parametrize('name, head', [
    ('RetinaNet', {'bbox_head.stacked_convs': 4}), ('MaskRCNN', {})])
def test_every_threshold_learns(small, losses, name, head):
    """A ReLU behind any TLU would stop a threshold below 0.

    Weights as built: init_weights() makes the last gamma of each block 0,
    which by itself stops every gradient into the block.
    """
    model = small(name, options=head | {
        'backbone.depth': 50, 'neck.in_channels': [32, 64, 128, 256]})
    taus = thresholds(model)
    assert len(taus) == 57
    set_thresholds(model, -.3)
    losses(model, batch=1, size=256, with_mask=name == 'MaskRCNN').backward()
    assert [n for n, t in taus.items() if t.grad.abs().sum() == 0] == []


@pytest.mark.parametrize('norm', ['FRN', dict(type='BN', tlu=True)])
def test_no_threshold_of_a_frozen_stage_trains(small, norm):
    """Also before train(): DDP lists the parameters that do at once."""
    model = small('RetinaNet', norm, {
        'backbone.frozen_stages': 2,
        'backbone.init_cfg': dict(type='Pretrained', checkpoint='mine.pth')})
    frozen = ('backbone.tlu', 'backbone.frn1', 'backbone.relu',
              'backbone.layer1', 'backbone.layer2')
    for name, tau in thresholds(model).items():
        assert tau.requires_grad is not name.startswith(frozen), name


@pytest.mark.parametrize('norm, backbone', [
    ('FRN', 'ResNet'), ('BN', 'ResNetV1d'), ('LN', 'ResNeXt'),
    ('FRN', 'ResNeXt')])
def test_thresholds_of_zero_are_relus(small, norm, backbone):
    """The same weights with ReLU give the same maps, to the last bit."""
    options = {
        'backbone.type': backbone, 'backbone.depth': 50,
        'neck.in_channels': [32, 64, 128, 256]
    }
    if backbone == 'ResNeXt':
        options |= {'backbone.groups': 4, 'backbone.base_width': 16}
    models = [
        small('RetinaNet', dict(type=norm, tlu=tlu), options=options)
        for tlu in (True, False)
    ]
    state = models[1].state_dict()
    set_thresholds(models[0], -1.)  # which the state dict says are ReLUs
    models[0].load_state_dict(state)
    assert not any(t.any() for t in thresholds(models[0]).values())
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(*(m.backbone(x) for m in models), strict=True):
        assert torch.equal(a, b)


def test_residual_block_step_by_step(small):
    """conv, norm, TLU, conv, norm, add, TLU: as paper.md's V1 reference."""
    model = small('RetinaNet')
    for p in model.parameters():
        nn.init.normal_(p, std=.3)
    block = model.backbone.layer2[0]
    x = torch.randn(2, 8, 16, 16)
    out = torch.maximum(
        _norm(block.conv1(x), block.frn1), _col(block.frn1.tau))
    out = _norm(block.conv2(out), block.frn2)
    shortcut = _norm(block.downsample[0](x), block.downsample[1])
    out = torch.maximum(out + shortcut, _col(block.tlu.tau))
    torch.testing.assert_close(block(x), out)


def _col(value):
    return value.view(1, -1, 1, 1)


def _norm(x, norm):
    nu2 = x.square().mean((2, 3), keepdim=True)
    return x / (nu2 + 1e-6).sqrt() * _col(norm.weight) + _col(norm.bias)


def test_checkpointed_blocks_give_the_same_gradients(small, losses):
    grads = []
    for with_cp in (False, True):
        model = small('RetinaNet', options={'backbone.with_cp': with_cp})
        set_thresholds(model, -.1)
        torch.manual_seed(0)
        losses(model).backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    for name, grad in grads[0].items():
        # Gradients of two branches add up in another order.
        torch.testing.assert_close(
            grad, grads[1][name], rtol=1e-4, atol=1e-4)


def test_a_placed_model_can_be_copied_and_pickled(small):
    x = torch.randn(1, 3, 64, 64)
    for norm in ('FRN', dict(type='BN', tlu=True)):
        model = small('RetinaNet', norm).eval()
        set_thresholds(model, .1)
        expected = model.backbone(x)
        for other in (copy.deepcopy(model),
                      pickle.loads(pickle.dumps(model))):
            set_thresholds(model, .2)  # the copies have their own
            for a, b in zip(other.backbone(x), expected, strict=True):
                assert torch.equal(a, b)


def test_folding_and_conversion_keep_the_thresholds(small):
    """They replace BN layers, so nothing may hang on one."""
    x = torch.randn(2, 3, 64, 64)
    model = small('RetinaNet', dict(type='BN', tlu=True)).eval()
    set_thresholds(model, .1)
    expected = model.backbone(x)
    changed = [
        fuse_conv_bn(copy.deepcopy(model)),
        revert_sync_batchnorm(convert_sync_batchnorm(copy.deepcopy(model)))
    ]
    for other in changed:
        for a, b in zip(other.eval().backbone(x), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_backbone_compiles_as_one_graph(small):
    model = small('RetinaNet').backbone
    for p in model.parameters():
        nn.init.normal_(p, std=.3)
    x = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    for a, b in zip(compiled(x), model(x), strict=True):
        torch.testing.assert_close(a, b)


def test_activations_without_a_norm_stay(small):
    model = small('MaskRCNN')
    assert type(model.roi_head.bbox_head.relu) is nn.ReLU
    assert type(model.roi_head.mask_head.relu) is nn.ReLU


def test_parts_limit_it(small):
    model = small('RetinaNet', dict(type='FRN', parts=['neck', 'head']))
    assert not [n for n in thresholds(model) if n.startswith('backbone')]
    assert len(thresholds(model)) == 4


def test_plugins_between_norm_and_convolution(build):
    """after_conv1: the TLU stands before the plugin, as the ReLU did."""
    plugins = [
        dict(
            cfg=dict(type='ContextBlock', ratio=.25),
            stages=(False, True, False, False),
            position='after_conv1')
    ]
    outputs = []
    for tlu in (True, False):
        model = build(
            'RetinaNet',
            dict(type='LN', tlu=tlu),
            options={'backbone.plugins': plugins})
        outputs.append(model.backbone(torch.ones(1, 3, 64, 64)))
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)


# What follows cannot be placed, and must say so.


def refused(build, name, *words, norm='FRN', options=None):
    with pytest.raises(ConfigError) as error:
        build(name, norm, options=options)
    for word in words:
        assert word in str(error.value)


def test_another_activation_is_refused(build):
    refused(
        build,
        'RetinaNet',
        'neck.lateral_convs.0.frn',
        'SiLU',
        "act_cfg=dict(type='ReLU')",
        'tlu=False',
        options={'neck.act_cfg': dict(type='SiLU')})


@pytest.mark.parametrize('norm', ['FRN', 'GN'])
def test_no_tlu_is_no_error(small, norm):
    groups = dict(num_groups=4) if norm == 'GN' else {}
    small(
        'RetinaNet',
        dict(type=norm, tlu=False, **groups),
        options={'neck.relu_before_extra_convs': True})


class Detector(nn.Module):

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


@pytest.mark.parametrize('name', PLACED)
def test_a_hidden_relu_is_placed(name):
    """As the same weights with ReLU; every threshold learns."""
    module, number = PLACED[name]
    torch.manual_seed(0)
    stock = Detector(module()).eval()
    model = copy.deepcopy(stock)
    apply_plan(model, parse_norm_cfg('FRN'))
    assert len(thresholds(model)) == number
    x = torch.randn(2, 8, 16, 16)
    for training in (True, False):
        stock.train(training)
        model.train(training)
        with outputs_of(stock) as nodes:
            torch.manual_seed(0)  # of dropout
            expected = stock.backbone(x)
        assert clips_behind(total(expected), nodes)  # it looks in earnest
        torch.manual_seed(0)
        torch.testing.assert_close(
            model.backbone(x), expected, rtol=0, atol=0)
    set_thresholds(model, -.3)
    with outputs_of(model) as nodes:
        result = total(model.backbone(x))
    assert clips_behind(result, nodes) == []
    result.backward()
    for path, tau in thresholds(model).items():
        assert tau.grad.abs().sum() > 0, path


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_placed_is_refused(name):
    module, message = REFUSED[name]
    model = Detector(module())
    before = str(model), model.state_dict().keys()
    with pytest.raises(ConfigError) as error:
        apply_plan(model, parse_norm_cfg('FRN'))
    assert str(error.value).startswith(message)
    assert 'tlu=False' in str(error.value)
    assert (str(model), model.state_dict().keys()) == before
    apply_plan(model, parse_norm_cfg(dict(type='FRN', tlu=False)))


def test_a_tlu_that_is_there_stays():
    conv = ConvModule(
        8,
        8,
        1,
        norm_cfg=dict(type='FRN'),
        act_cfg=dict(type='TLU', num_features=8))
    apply_plan(Detector(conv), parse_norm_cfg('FRN'))
    assert isinstance(conv.activate, TLU)
    assert conv.norm.tau is None
    assert norm_sites(conv)[0].activation == 'TLU'


@pytest.mark.parametrize('order, placed', [
    (('conv', 'norm', 'act'), True),
    (('norm', 'act', 'conv'), True),
    (('act', 'conv', 'norm'), False),
    (('norm', 'conv', 'act'), False),
])
def test_order_of_a_conv_module(order, placed):
    conv = ConvModule(8, 8, 1, norm_cfg=dict(type='FRN'), order=order)
    apply_plan(Detector(nn.Sequential(conv)), parse_norm_cfg('FRN'))
    assert (conv.norm.tau is not None) is placed
    assert isinstance(conv.activate, nn.Identity) is placed
