"""Float16 but for the norms, in PyTorch and in what it is exported to."""

import copy

import onnxruntime
import openvino
import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from frn_mmdet import FRN
from frn_mmdet.export.half import halve
from frn_mmdet.export.prepare import rename_keywords
from frn_mmdet.switch.norms import NORMS


def test_a_norm_squares_in_float32():
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), FRN(4)).eval()
    model[0].weight.data.fill_(1.)
    x = 6e4 * (2 * torch.rand(1, 1, 9, 9) - 1)
    with torch.no_grad():
        wanted = model(x)
        y = halve(model)(x.half())
    assert y.dtype == torch.float16 and x.abs().max() > 5e4
    torch.testing.assert_close(y.float(), wanted, rtol=5e-3, atol=5e-3)


def test_a_norm_keeps_what_it_has():
    """BN's variance, learned eps: float16 would round or lose them."""
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1),
                          FRN(4, learnable_eps=True))
    model[0].running_var.fill_(1e5)  # infinite in float16
    model[2].eps_l.data.fill_(1e-8)  # 0 in float16
    before = copy.deepcopy(model.state_dict())
    halve(model)
    for name, value in model.state_dict().items():
        if name.startswith('1.'):
            assert value.dtype == torch.float16
        else:
            assert value.dtype == before[name].dtype
            assert value.equal(before[name])


@pytest.mark.slow  # to export it takes seconds
def test_every_norm_runs_in_both_runtimes():
    """As close to float32 as PyTorch's own float16 is, or twice that."""
    torch.manual_seed(0)
    layers, channels = [], 3
    for name, norm in NORMS.items():
        if name == 'SyncBN':  # is BN where it is exported
            continue
        cfg = dict(norm.defaults, type=norm.type)
        if 'num_groups' in cfg:
            cfg['num_groups'] = 2
        layers.append(ConvModule(channels, 4, 3, padding=1, norm_cfg=cfg))
        channels = 4
    model = nn.Sequential(*layers).eval()
    rename_keywords(model)
    sizes = (2, 3, 16, 24), (3, 3, 20, 17)
    images = [300 * torch.randn(size) for size in sizes]
    with torch.no_grad():
        wanted = [model(x) for x in images]
        halve(model)
        own = [model(x.half()).float() for x in images]
        program = torch.onnx.export(
            model, (images[0].half(), ), dynamo=True, opset_version=18,
            input_names=['x'], verbose=False,
            dynamic_shapes=({0: 'batch', 2: 'height', 3: 'width'}, ))
    file = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(file)
    core = openvino.Core()
    network = core.compile_model(
        core.read_model(file), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    for x, y, half in zip(images, wanted, own, strict=True):
        x = x.half().numpy()
        tolerance = 2 * (half - y).abs().max() + 1e-3
        for z in session.run(None, dict(x=x))[0], network(x)[0]:
            assert (torch.from_numpy(z).float() - y).abs().max() < tolerance
