"""ResNetV2 beside timm's, and as published."""

import pytest
import torch

timm = pytest.importorskip('timm')
pytest.importorskip('mmpretrain')

from frn_mmdet.models import ResNetV2  # noqa: E402


def like_timm(state, names):
    """Timm's weights under our names."""
    ours = {}
    for name, value in state.items():
        name = name.replace('stem.conv', 'stem.0')
        for stage in range(4):
            name = name.replace(f'stages.{stage}.blocks', f'layer{stage + 1}')
        name = name.replace('downsample.conv', 'downsample')
        name = name.replace('.norm', '.bn')
        name = f'bn.{name[5:]}' if name.startswith('norm.') else name
        if not name.startswith('head.'):
            ours[name] = value
    assert ours.keys() == names
    return ours


@pytest.mark.parametrize('training', [False, True])
def test_with_bn_it_is_timms(training):
    torch.manual_seed(0)
    theirs = timm.create_model('resnetv2_50', pretrained=False)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, .3)
            module.running_var.uniform_(.5, 2)
            module.weight.data.normal_(1, .3)
            module.bias.data.normal_(0, .3)
        elif isinstance(module, torch.nn.Conv2d):  # timm zeroes the last
            torch.nn.init.kaiming_normal_(module.weight)
    ours = ResNetV2(50, out_indices=(3, ))
    ours.load_state_dict(
        like_timm(theirs.state_dict(), ours.state_dict().keys()))
    x = torch.randn(2, 3, 128, 96)
    theirs.train(training)
    ours.train(training)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs.forward_features(x),
                                   rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('depth', [50, 101, 152])
def test_as_many_parameters_as_timms(depth):
    with torch.device('meta'):
        theirs = timm.create_model(f'resnetv2_{depth}', num_classes=0)
        ours = ResNetV2(depth)
    count = [sum(p.numel() for p in m.parameters()) for m in (ours, theirs)]
    assert count[0] == count[1]
