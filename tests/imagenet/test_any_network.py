"""``switch_norms`` on networks of torchvision and timm."""

import re
from pathlib import Path

import pytest
import torch
from autograd_graph import clips_behind, outputs_of
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

timm = pytest.importorskip('timm')
models = pytest.importorskip('torchvision').models

from frn_mmdet import FRN, ConfigError, switch_norms  # noqa: E402

PAGE = Path(__file__).parents[2] / 'docs/other_packages.md'
# BN itself, in test mode, for any sizes of maps.
BN_ITSELF = dict(type='FRN', from_bn=1e30)


def of_timm(name):
    return lambda: timm.create_model(name)


# With the numbers of norms and of TLUs as a reader of their sources counts
# them: ResNet-50 has 33 norms with a ReLU behind, and 16 sums; a RegNet blocks
# of three norms, four shortcuts and a stem; the others one for each norm but
# the depthwise ones.
SWITCHED = dict(
    resnet50=(models.resnet50, 53, 33 + 16),
    regnet_y_400mf=(models.regnet_y_400mf, 16 * 3 + 5, 16 * 3 + 1),
    shufflenet=(models.shufflenet_v2_x1_0, 56, 37),
    fcn=(lambda: models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, aux_loss=True), 55, 33 + 16 + 2),
    timm_resnet26d=(of_timm('resnet26d'), 31, 2 + 1 + 8 * 3),
    timm_regnetx=(of_timm('regnetx_002'), 13 * 3 + 4 + 1, 13 * 3 + 1),
    timm_regnety=(of_timm('regnety_002'), 13 * 3 + 4 + 1, 13 * 3 + 1),
    timm_densenet121=(of_timm('densenet121'), 121, 121),
    timm_preactivation=(of_timm('resnetv2_50'), 49, 49))
REFUSED = dict(
    mobilenet_v2=(models.mobilenet_v2, 'features.0.2: ReLU6 acts on'),
    densenet121=(models.densenet121, r'DenseNet \(relu\).*features.norm5'),
    googlenet=(lambda: models.googlenet(init_weights=False),
               r'conv1.forward \(relu\)'),
    timm_mobilenetv2=(of_timm('mobilenetv2_050'), r'bn1.act: ReLU6 acts on'),
    efficientnet=(models.efficientnet_b0, 'features.0.2: SiLU acts on'))
X = torch.randn(2, 3, 64, 64)


def trained(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(std=.1)
            module.running_var.uniform_(.5, 2.)
            module.num_batches_tracked += 1
            nn.init.uniform_(module.weight, .5, 1.5)
            nn.init.normal_(module.bias, std=.1)
    return model.eval()


def maps_of(output):
    return output if isinstance(output, torch.Tensor) else output['out']


def check_is_bn(model, norm_cfg):
    with torch.no_grad():
        expected = maps_of(model(X))
        assert switch_norms(model, norm_cfg, X) is model
        difference = (maps_of(model(X)) - expected).abs().max()
    assert difference < 1e-5 * expected.abs().max()
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())


@pytest.mark.parametrize('tlu', [True, False], ids=['TLU', 'ReLU'])
@pytest.mark.parametrize('name', SWITCHED)
def test_at_share_0_it_is_bn_in_test_mode(name, tlu):
    make, norms, activations = SWITCHED[name]
    model = trained(make())
    check_is_bn(model, dict(tlu=tlu, **BN_ITSELF))
    assert sum(type(m) is FRN for m in model.modules()) == norms
    taus = [n for n, _ in model.named_parameters() if n.endswith('tau')]
    assert len(taus) == activations * tlu


@pytest.mark.parametrize('name', SWITCHED)
def test_no_relu_is_left_behind_a_norm(name):
    """As autograd sees it, in training."""
    model = switch_norms(trained(SWITCHED[name][0]()), 'FRN', X).train()
    with outputs_of(model) as nodes:
        loss = maps_of(model(X)).sum()
    assert len(nodes) >= SWITCHED[name][1]
    assert clips_behind(loss, nodes) == []


@pytest.mark.parametrize('name', REFUSED)
def test_refused_by_name_and_switched_without_tlus(name):
    make, words = REFUSED[name]
    model = trained(make())
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(ConfigError, match=words):
        switch_norms(model, 'FRN', X)
    assert [type(m) for m in model.modules()] == kinds
    check_is_bn(model, dict(tlu=False, **BN_ITSELF))


def test_the_example_of_the_page():
    code, = (block for block in re.findall(
        r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
        if 'switch_norms(' in block)
    names = {}
    exec(code, names)
    model = names['model']
    assert sum(type(m) is FRN for m in model.modules()) == 53
    assert sum(n.endswith('tau') for n, _ in model.named_parameters()) == 49
