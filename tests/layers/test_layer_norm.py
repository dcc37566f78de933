import torch
from mmcv.cnn import build_norm_layer, is_norm
from torch import nn


def test_normalises_each_image_over_channels_and_space():
    name, layer = build_norm_layer(dict(type='frn_mmdet.LN'), 8, postfix=2)
    assert name == 'ln2'
    assert is_norm(layer)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 8, 5, 6) * 3 + 1
    for i in range(2):
        mean, var = x[i].mean(), x[i].var(unbiased=False)
        expected = (x[i] - mean) / (var + 1e-5).sqrt()
        expected = (expected * layer.weight.view(8, 1, 1) +
                    layer.bias.view(8, 1, 1))
        torch.testing.assert_close(layer(x)[i], expected)
