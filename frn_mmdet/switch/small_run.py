"""Run a model once, on inputs as small as its strides allow."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import is_norm
from torch import Tensor, nn

from .flow import Flow, watch_flow

# Of the image, in pixels: 2x2 elements are left at stride 128. The second is
# for what cannot do with that.
SIZES = (256, 512)
MAP = 64  # side of the first map that a module on its own is given
LEVELS = 5  # of a pyramid, where nothing says how many
BOXES = 2  # for the heads that look at boxes


def flow_of(model: nn.Module, training: bool = False) -> Flow:
    """Watch a small run of a detector, or of any other module.

    A detector gets one image and, where it has a second stage, two boxes.
    Anything else gets a map, or one for each level, of the channels that its
    ``in_channels`` or its first layer asks for. What does not run is noted
    in ``failures``, and its parts run on their own.

    Args:
        model (nn.Module): Its parameters may be on the meta device.
        training (bool): Whether in training mode. Defaults to False.

    Returns:
        Flow: What was seen.
    """
    if any(p.is_meta for p in model.parameters()):
        model = _on_cpu(model)
    with torch.device(next(model.parameters(), torch.empty(0)).device), (
            _without_gpu(model)):
        return watch_flow(model, _run, training)


def _on_cpu(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device, of zeros."""
    model = copy.deepcopy(model).to_empty(device='cpu')
    for value in (*model.parameters(), *model.buffers()):
        value.data.zero_()
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                setattr(module, name, torch.zeros_like(value, device='cpu'))
    return model


def _run(model: nn.Module, flow: Flow) -> list[tuple[Any, bool]]:
    if not hasattr(model, 'extract_feat'):
        return _run_module(model, '', flow)
    for size in SIZES:
        output = _try(flow, type(model).__name__, _run_detector, model, size)
        if output is not None:
            flow.failures.clear()
            break
    runs = [(output, True)]
    unseen = [name for name, child in model.named_children()
              if _unseen(child, name, flow)]
    if unseen:  # what mmdet runs in training only, or cannot run like this
        feats = _try(flow, 'extract_feat', model.extract_feat,
                     _image(model, size))
        for name in unseen:
            runs += _run_module(model.get_submodule(name), name, flow, feats,
                                whole=False)
    return runs


def _try(flow: Flow, what: str, run: Callable, *args) -> Any:
    """Run it; of what fails, what ran before has been seen all the same."""
    try:
        return run(*args)
    except Exception as error:  # any: it is a model's own code
        text = str(error).partition('\n')[0]
        flow.failures.append(f'{what}: {type(error).__name__}: {text}')
        return None


def _unseen(module: nn.Module, path: str, flow: Flow) -> bool:
    return any(
        is_norm(child) and f'{path}.{name}'.strip('.') not in flow.norms
        for name, child in module.named_modules())


def _run_detector(model: nn.Module, size: int) -> Any:
    image = _image(model, size)
    samples = [_sample(size)]
    if not hasattr(model, 'roi_head'):
        return model(image, samples, mode='tensor')
    # As its _forward(), but with few boxes: a thousand take seconds.
    feats = model.extract_feat(image)
    proposals = [samples[0].proposals]
    if getattr(model, 'rpn_head', None) is not None:
        proposals = [boxes[:BOXES] for boxes in model.rpn_head.predict(
            feats, samples, rescale=False)]
    return feats, model.roi_head.forward(feats, proposals, samples)


def _image(model: nn.Module, size: int) -> Tensor:
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    return _map(3 if mean is None else len(mean), size, model)


def _map(channels: int, size: int, model: nn.Module) -> Tensor:
    like = next(model.parameters(), torch.empty(0))
    return torch.randn(1, channels, size, size).to(like.dtype)


def _channels(module: nn.Module) -> int | None:
    """Those of the first layer that takes a map."""
    for child in module.modules():
        if isinstance(child, nn.modules.conv._ConvNd):
            return child.in_channels
        if is_norm(child):
            return getattr(child, 'num_features', None) or getattr(
                child, 'num_channels', None)
    return None


def _sample(size: int) -> Any:
    # Here: this module is imported with the package, also without mmdet.
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    shape = (size, size)
    sample = DetDataSample(metainfo=dict(
        img_id=0, img_shape=shape, ori_shape=shape, pad_shape=shape,
        batch_input_shape=shape, scale_factor=(1., 1.)))
    boxes = torch.tensor([[0., 0., size / 2, size / 2]] * BOXES)
    sample.proposals = InstanceData(bboxes=boxes)
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.zeros(BOXES, dtype=torch.long),
        masks=BitmapMasks.random(BOXES, *shape))
    return sample


def _run_module(module: nn.Module, path: str, flow: Flow, feats: Any = None,
                whole: bool = True) -> list[tuple[Any, bool]]:
    """Run a module on the first input that it takes; else its children."""
    runs = []
    if type(module).forward is not nn.Module.forward:
        for inputs in _guesses(module, feats):
            output = _try(flow, path or type(module).__name__, module, inputs)
            if output is not None:
                runs.append((output, whole))
                break
        whole = False
    for name, child in module.named_children():
        at = f'{path}.{name}' if path else name
        if _unseen(child, at, flow):
            runs += _run_module(child, at, flow, whole=whole)
    return runs


def _guesses(module: nn.Module, feats: Any) -> Iterator[Any]:
    """Inputs that a module may take, the likeliest first."""
    if feats is not None:
        yield feats
    given = getattr(module, 'in_channels', None)
    if isinstance(given, (list, tuple)):
        yield tuple(_map(channels, MAP >> i, module)
                    for i, channels in enumerate(given))
    channels = given if isinstance(given, int) else _channels(module)
    if channels is not None:
        yield _map(channels, MAP, module)
        yield tuple(_map(channels, MAP >> i, module) for i in range(LEVELS))


@contextmanager
def _without_gpu(model: nn.Module) -> Iterator[None]:
    """Let what mmcv can run on a GPU only give something of its shape."""
    try:
        from mmcv.ops import CARAFEPack, MaskedConv2d
    except ImportError:  # mmcv-lite has no operations
        yield
        return

    def enlarge(layer, x):
        return F.interpolate(x, scale_factor=layer.scale_factor)

    def convolve(layer, x, mask=None):
        return nn.Conv2d.forward(layer, x)

    standins = {CARAFEPack: enlarge, MaskedConv2d: convolve}
    changed = [module for module in model.modules()
               if type(module) in standins]
    for module in changed:
        module.forward = partial(standins[type(module)], module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward
