import pytest
import torch
import torch.nn.functional as F
from autograd_graph import clips_behind, outputs_of, total
from mmcv.cnn import fuse_conv_bn
from mmdet.registry import MODELS
from torch import nn

from frn_mmdet import norm_sites
from frn_mmdet.errors import ConfigError
from frn_mmdet.models import ResNetV2

SMALL = dict(_delete_=True, type='frn_mmdet.ResNetV2', depth=18,
             base_channels=8)
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def randomise(model):
    """Weights, and statistics of BN, that hide no mistake."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith('running_var'):
            value.uniform_(.5, 2)
        elif value.dim() == 4:
            nn.init.kaiming_normal_(value)
        elif value.is_floating_point():
            value.normal_(1. if name.endswith('weight') else 0., .3)
    return model


def formula(state, x, depth, training=False):
    """He et al. 2016, section 3, figure 4(e), in plain functions.

    Returns the outputs of the four stages.
    """

    def preact(x, name):
        stats = [state[f'{name}.running_{key}'].clone()
                 for key in ('mean', 'var')]
        return F.relu(F.batch_norm(
            x, *stats, state[f'{name}.weight'], state[f'{name}.bias'],
            training))

    def conv(x, name, stride=1):
        weight = state[f'{name}.weight']
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)

    x = F.max_pool2d(conv(x, 'stem.0', 2), 3, 2, 1)
    outputs = []
    for stage, blocks in enumerate(BLOCKS[depth]):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            name = f'layer{stage + 1}.{block}'
            first = preact(x, f'{name}.bn1')
            if block == 0:
                outputs.append(first)
            if f'{name}.downsample.weight' in state:
                x = conv(first, f'{name}.downsample', stride)
            if depth < 50:
                y = conv(first, f'{name}.conv1', stride)
                y = conv(preact(y, f'{name}.bn2'), f'{name}.conv2')
            else:
                y = conv(first, f'{name}.conv1')
                y = conv(preact(y, f'{name}.bn2'), f'{name}.conv2', stride)
                y = conv(preact(y, f'{name}.bn3'), f'{name}.conv3')
            x = x + y
    return [*outputs[1:], preact(x, 'bn')]


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('depth', [18, 50])
def test_with_bn_it_is_the_papers_formula(depth, training):
    model = randomise(ResNetV2(depth, base_channels=8)).train(training)
    x = torch.randn(2, 3, 96, 64)
    expected = formula(model.state_dict(), x, depth, training)
    outputs = model(x)
    assert [tuple(y.shape[2:]) for y in outputs] == [
        (96 // s, 64 // s) for s in (4, 8, 16, 32)]
    for y, z in zip(outputs, expected, strict=True):
        torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-4)


# timm's resnetv2_50, 101 and 152, with its classifier of 1000 classes: its
# page says 25.55, 44.54 and 60.19 million.
@pytest.mark.parametrize('depth, millions', [
    (50, 25.55), (101, 44.54), (152, 60.19)])
def test_as_many_parameters_as_published(depth, millions):
    with torch.device('meta'):
        model = ResNetV2(depth)
    classifier = 2048 * 1000 + 1000
    count = sum(p.numel() for p in model.parameters()) + classifier
    assert round(count / 1e6, 2) == millions


def test_outputs_that_are_asked_for():
    model = randomise(ResNetV2(18, base_channels=8)).eval()
    x = torch.randn(1, 3, 64, 64)
    every = model(x)
    model.out_indices = (1, 3)
    some = model(x)
    assert torch.equal(some[0], every[1])
    assert torch.equal(some[1], every[3])
    short = ResNetV2(18, base_channels=8, num_stages=2, strides=(1, 2),
                     out_indices=(1, ))
    assert short(x)[0].shape == (1, 16, 8, 8)


@pytest.mark.parametrize('name, heads', [('RetinaNet', 4), ('MaskRCNN', 8)])
def test_a_detector_by_one_key(small, name, heads):
    """49 norms in the backbone and those of the heads have a threshold, the
    FPN's 8 none.
    """
    sites = norm_sites(small(name, 'FRN', {
        'backbone': SMALL | dict(depth=50),
        'neck.in_channels': [32, 64, 128, 256]
    }))
    assert {site.norm for site in sites} == {'FRN'}  # none on a sum
    assert len(sites) == 49 + 8 + heads
    for site in sites:
        assert site.activation == (
            None if site.path.startswith('neck.') else 'TLU')


@pytest.mark.parametrize('outputs', [(0, 1, 2), (1, )])
def test_without_the_last_output_its_norm_is_not_built(small, outputs):
    """A norm that never runs would be refused: nobody knows what follows."""
    model = small('RetinaNet', 'FRN', {
        'backbone': SMALL | dict(out_indices=outputs),
        'neck.in_channels': [8 * 2**i for i in outputs]
    })
    sites = [s for s in norm_sites(model) if s.path.startswith('backbone.')]
    assert len(sites) == 8 * 2  # of two norms in each of the blocks
    assert {site.activation for site in sites} == {'TLU'}
    plain = randomise(ResNetV2(18, base_channels=8)).eval()
    fewer = ResNetV2(18, base_channels=8, out_indices=outputs).eval()
    extra = fewer.load_state_dict(plain.state_dict(), strict=False)
    assert not extra.missing_keys
    assert {key.partition('.')[0] for key in extra.unexpected_keys} == {'bn'}
    x = torch.randn(1, 3, 64, 64)
    every = plain(x)
    for i, y in zip(outputs, fewer(x), strict=True):
        assert y.equal(every[i])


@pytest.mark.parametrize('norm', [
    'FRN', 'BN', 'GN', 'LN', 'IN', 'BRN', 'GFRN', 'LFRN'])
def test_every_threshold_learns(small, norm):
    norm_cfg = dict(type=norm, tlu=True)
    if norm in ('GN', 'GFRN'):
        norm_cfg['num_groups'] = 4
    model = small('RetinaNet', norm_cfg, dict(backbone=SMALL)).train()
    with outputs_of(model) as nodes:
        loss = total(model(torch.randn(2, 3, 128, 256), mode='tensor'))
    assert not clips_behind(loss, nodes)
    loss.backward()
    taus = {n: p for n, p in model.named_parameters() if n.endswith('tau')}
    assert sum(n.startswith('backbone.') for n in taus) == 8 * 2 + 1
    for name, tau in taus.items():
        assert tau.grad.isfinite().all()
        assert tau.grad.abs().sum() > 0, name


@pytest.mark.parametrize('frozen', [0, 2])
def test_frozen_stages_and_norm_eval(frozen):
    model = ResNetV2(18, base_channels=8, frozen_stages=frozen).train()
    for name, module in model.named_children():
        is_frozen = name in ('stem', 'layer1', 'layer2')[:frozen + 1]
        assert {p.requires_grad for p in module.parameters()} <= {
            not is_frozen}
        assert module.training is not is_frozen
    model = ResNetV2(18, base_channels=8, norm_eval=True).train()
    assert {m.training for m in model.modules()
            if isinstance(m, nn.BatchNorm2d)} == {False}


def test_checkpointing_changes_nothing():
    x = torch.randn(2, 3, 64, 64)
    grads = []
    for with_cp in (False, True):
        model = randomise(ResNetV2(50, base_channels=8, with_cp=with_cp))
        sum(y.square().mean() for y in model.train()(x)).backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_folding_bn_changes_nothing():
    model = randomise(ResNetV2(50, base_channels=8)).eval().double()
    x = torch.randn(1, 3, 64, 64).double()
    before = model(x)
    for a, b in zip(before, fuse_conv_bn(model)(x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('norm', ['FRN', 'BN'])
def test_a_classifiers_checkpoint_starts_a_detector(small, tmp_path, norm):
    """All of its norms have a place: those of the outputs, too."""
    classifier = randomise(ResNetV2(18, base_channels=8, out_indices=(3, ),
                                    norm_cfg=dict(type=norm)))
    state = {f'backbone.{k}': v for k, v in classifier.state_dict().items()}
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'it.pth')
    init_cfg = dict(type='Pretrained', prefix='backbone.',
                    checkpoint=str(tmp_path / 'it.pth'))
    model = small('RetinaNet', 'FRN', dict(
        backbone=SMALL | dict(init_cfg=init_cfg)))
    model.init_weights()
    own = model.backbone.state_dict()
    for key, value in classifier.state_dict().items():
        if 'running' not in key and 'num_batches' not in key:
            assert torch.equal(own[key.replace('bn', 'frn')], value)
    assert (model.backbone.frn.ref_mean.abs().sum() > 0) == (norm == 'BN')


@pytest.mark.parametrize('options, error', [
    (dict(depth=18, frozen_stages=5),
     'ResNetV2 frozen_stages must be a whole number from -1 to 4'),
    (dict(depth=17), 'ResNetV2 depth must be one of 18, 34, 50, 101, 152'),
    (dict(depth=50, num_stages=5), 'num_stages must be a whole number'),
    (dict(depth=50, num_stages=3), 'strides must be 3 whole numbers'),
    (dict(depth=50, out_indices=(4, )), 'out_indices must be a list of some'),
    (dict(depth=50, out_indices=()), r'out_indices must be .*, got \(\)'),
    # of another kind
    (dict(depth=[18]), r'depth must be one of .*, got \[18\]'),
    (dict(depth=50, num_stages=3.0), 'num_stages must be .*, got 3.0'),
    (dict(depth=50, strides=2), 'strides must be .*, got 2'),
    (dict(depth=50, strides=(1, 2, 2, 0)), r'strides must be .*, 0\)'),
    (dict(depth=50, out_indices=3), 'out_indices must be .*, got 3'),
    (dict(depth=50, frozen_stages=True), 'frozen_stages .*, got True'),
    (dict(depth=50, norm_cfg='BN'), 'norm_cfg must be a dict .*, got .BN'),
])
def test_what_does_not_fit_is_named(options, error):
    with pytest.raises(ConfigError, match=error):
        MODELS.build(dict(type='frn_mmdet.ResNetV2', **options))
