"""mmpretrain's classifier by one key, on its own configs and on ours."""

import pytest
import torch
from torch import nn

pytest.importorskip('mmpretrain')

from autograd_graph import clips_behind, outputs_of  # noqa: E402
from mmengine.runner.checkpoint import load_state_dict  # noqa: E402
from mmpretrain.registry import MODELS  # noqa: E402
from mmpretrain.structures import DataSample  # noqa: E402
from torchvision.models import Inception_V3_Weights  # noqa: E402

from frn_mmdet import FRN, norm_sites  # noqa: E402
from frn_mmdet.errors import ConfigError  # noqa: E402

RESNET = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
INCEPTION = 'mmpretrain::inception_v3/inception-v3_8xb32_in1k.py'
# Of InceptionV3's channels, 48 and 80 among them, 16 is the largest divisor.
ARGUMENTS = dict(
    FRN=dict(learnable_eps=True),
    GN=dict(num_groups=16),
    GFRN=dict(num_groups=16))


def losses(model, size, batch=2):
    samples = [DataSample().set_gt_label(i) for i in range(batch)]
    return model(torch.randn(batch, 3, size, size), samples, mode='loss')


def test_a_stock_config(build):
    """ResNet-50 has 53 norms, 33 of which an activation follows."""
    model = build(RESNET)
    sites = norm_sites(model)
    assert {site.norm for site in sites} == {'FRN', None}
    assert sum(site.norm == 'FRN' for site in sites) == 53
    assert sum(site.activation == 'TLU' for site in sites) == 33 + 16
    assert {m.eps for m in model.modules() if isinstance(m, FRN)} == {1e-6}


def test_none_is_mmpretrains_own(build, config):
    model = build(RESNET, None)
    torch.manual_seed(0)
    theirs = MODELS.build(config(RESNET).model)
    assert type(model).__mro__[2] is type(theirs)
    state = theirs.state_dict()
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k])
               for k, v in model.state_dict().items())


def test_norms_that_no_config_names(build):
    """InceptionV3 writes its BNs down: 94, and 2 in the auxiliary head."""
    sites = norm_sites(build(INCEPTION))
    assert len(sites) == 94
    assert {(s.norm, s.activation) for s in sites} == {('FRN', 'TLU')}
    model = build('InceptionV3', dict(type='FRN', learnable_eps=True))
    sites = norm_sites(model)
    assert len(sites) == 96
    assert {(s.norm, s.activation) for s in sites} == {('FRN', 'TLU')}
    assert model.backbone.AuxLogits.conv1.bn.eps_l is not None
    # Without it a map of 1x1 would lose all but its sign.
    model = build('InceptionV3', 'FRN')
    assert list(model.switch_outcome.stayed) == [
        'backbone.AuxLogits.conv1.bn']
    assert 'learnable_eps' in str(model.switch_outcome.stayed)


# timm's resnetv2_50 (its page says 25.5 million); torchvision's inception_v3.
@pytest.mark.parametrize('name, count, shape', [
    ('ResNetV2', 25549352, (2048, 10, 10)),
    ('InceptionV3', Inception_V3_Weights.IMAGENET1K_V1.meta['num_params'],
     (2048, 8, 8))])
def test_as_published(build, name, count, shape):
    model = build(name, 'BN').eval()
    assert sum(p.numel() for p in model.parameters()) == count
    last = model.backbone.relu if name == 'ResNetV2' else (
        model.backbone.Mixed_7c)
    shapes = []
    last.register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        scores = model(torch.randn(1, 3, 299, 299))
    assert shapes == [shape]
    assert (scores[-1:] if name == 'ResNetV2' else scores).shape == (1, 1000)


@pytest.mark.parametrize('tlu', [False, True], ids=['ReLU', 'TLU'])
@pytest.mark.parametrize('norm', ['BN', 'GN', 'LN', 'IN', 'BRN', 'GFRN',
                                  'LFRN', 'FRN'])
@pytest.mark.parametrize('name, size', [('ResNetV2', 64),
                                        ('InceptionV3', 299)])
def test_two_steps(build, name, size, norm, tlu):
    """Finite, every threshold with a gradient, nothing behind a TLU."""
    model = build(name, dict(type=norm, tlu=tlu, **ARGUMENTS.get(norm, {})),
                  {'backbone.dropout': 0.} if name == 'InceptionV3' else {})
    model.init_weights()
    model.train()
    taus = {n: p for n, p in model.named_parameters() if n.endswith('.tau')}
    norms = 49 if name == 'ResNetV2' else 96
    # Of one element an IN leaves nothing: one BN stays in the auxiliary head.
    assert len(taus) == tlu * (norms - (norm == 'IN' and norms == 96))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        with outputs_of(model) as nodes:
            loss = model.parse_losses(losses(model, size))[0]
        assert loss.isfinite()
        if tlu:
            assert clips_behind(loss, nodes) == []
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert [n for n, t in taus.items() if not t.grad.isfinite().all()
                or t.grad.abs().sum() == 0] == []


def test_the_auxiliary_head_has_a_loss_of_its_own(build):
    model = build('InceptionV3', 'BN', {'backbone.dropout': 0.}).train()
    torch.manual_seed(0)
    out = losses(model, 299)
    assert out.keys() == {'loss', 'loss_aux'}
    torch.manual_seed(0)
    aux, scores = model.backbone(torch.randn(2, 3, 299, 299))
    labels = torch.arange(2)
    # BN's statistics are the batch's, so both runs are the same.
    torch.testing.assert_close(
        out['loss'], nn.functional.cross_entropy(scores, labels))
    torch.testing.assert_close(
        out['loss_aux'], .4 * nn.functional.cross_entropy(aux, labels))


@pytest.mark.parametrize('name, size', [(RESNET, 96), ('ResNetV2', 96),
                                        (INCEPTION, 128)])
def test_frn_from_a_checkpoint_of_bn(build, name, size):
    """For a large from_bn it is BN in test mode, InceptionV3's eps of 0.001
    (which no config says) included.
    """
    options = {} if name != INCEPTION else {'backbone.aux_logits': False}
    bn = build(name, 'BN', options).eval()
    x = torch.randn(2, 3, size, size)
    generator = torch.Generator().manual_seed(0)

    def settle(norm, args):
        var, mean = torch.var_mean(args[0], (0, 2, 3))
        norm.running_mean.copy_(mean)
        # so small that eps counts
        norm.running_var.copy_(var * .5)

    with torch.no_grad():
        for module in bn.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(.05, .15, generator=generator)
                module.bias.normal_(0, .03, generator=generator)
                module.register_forward_pre_hook(settle)
        bn(x)
        for module in bn.modules():
            module._forward_pre_hooks.clear()
        frn = build(name, dict(type='FRN', from_bn=1e6), options).eval()
        load_state_dict(frn, bn.state_dict(), strict=True)
        assert {m.norm for m in norm_sites(frn) if m.norm} == {'FRN'}
        expected, got = bn(x), frn(x)
    expected, got = (y[-1] if isinstance(y, tuple) else y
                     for y in (expected, got))
    assert expected.std() > 0
    torch.testing.assert_close(got, expected, rtol=1e-3,
                               atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize('name, norms', [
    ('densenet/densenet121_4xb256_in1k.py', 121),
    ('seresnet/seresnet50_8xb32_in1k.py', 53)])
def test_other_stock_configs(build, name, norms):
    """DenseNet's norms stand before its convolutions, too."""
    model = build(f'mmpretrain::{name}')
    assert model.switch_outcome.stayed == {}
    sites = norm_sites(model)
    assert {site.norm for site in sites} <= {'FRN', None}
    assert sum(site.norm == 'FRN' for site in sites) == norms
    assert {s.activation for s in sites} <= {'TLU', None}


@pytest.mark.parametrize('name', [
    'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
    'mmpretrain::edgenext/edgenext-xxsmall_8xb256_in1k.py'])
@pytest.mark.parametrize('norm', ['FRN', dict(type='GN', num_groups=1)])
def test_what_only_their_own_norm_can_do(build, name, norm):
    with pytest.raises(ConfigError, match=(
            'only another norm takes: data_format; leave .backbone. out')):
        build(name, norm)


def test_errors(build):
    with pytest.raises(ConfigError, match="unknown norm 'XN'; choose one of"):
        build(RESNET, 'XN')
    with pytest.raises(ConfigError, match='backbone.conv1.activate: ReLU6 act'
                       r's on backbone.conv1.frn \(FRN\)'):
        build('mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py')
    bn = build(RESNET, 'BN').state_dict()
    with pytest.raises(ConfigError, match='the backbone of the checkpoint has '
                       'BN and that of the model has GN; set'):
        load_state_dict(build(RESNET, dict(type='GN', from_bn=False)), bn,
                        strict=False)
