"""Run a model once, on inputs as small as its strides allow."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .flow import Flow, in_mode, watch_flow
from .norms import is_norm

# Height and width of the image, in pixels: at a stride of 128 a row of two
# elements is left, so that a map of 1x1 is one that was pooled. The second is
# for what cannot do with that.
SIZES = ((128, 256), (512, 512))
# A classifier is made for images of one size, which nothing in it says.
CLASSIFIER_SIZES = ((224, 224), (299, 299), (384, 384))
MAP = (64, 64)  # the first map that a module on its own is given
LEVELS = 5  # of a pyramid, where nothing says how many
BOXES = 2  # for the heads that look at boxes


def flow_of(model: nn.Module, training: bool = False) -> Flow:
    """Watch a small run of a detector, or of any other module.

    A detector gets one image with two boxes, a classifier one with a label;
    in training they compute their losses. Anything else gets a map, or one
    for each level, of the channels that its ``in_channels`` or its first
    layer asks for. What cannot run is noted in ``failures``, and its parts
    run on their own.

    Args:
        model (nn.Module): Its parameters may be on the meta device. What
            runs is a copy.
        training (bool): Whether in training mode. Defaults to False.

    Returns:
        Flow: What was seen.
    """
    model = _copy(model)
    with torch.device(next(model.parameters(), torch.empty(0)).device), (
            _without_gpu(model)):
        return watch_flow(model, _run_training if training else _run,
                          training)


def _copy(model: nn.Module) -> nn.Module:
    """A copy of zeros, since any weights would do if they make sense.

    Those of a model that has just been built may not: Sparse R-CNN's boxes
    would have negative sizes.
    """
    if any(p.is_meta for p in model.parameters()):
        return _on_cpu(model)
    try:
        return copy.deepcopy(model, {
            id(p): nn.Parameter(torch.zeros_like(p), p.requires_grad)
            for p in model.parameters()})
    except Exception:  # any: an attribute of a module is code of a user's
        return model


def _on_cpu(model: nn.Module) -> nn.Module:
    """The same of a model on the meta device, its buffers too."""
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
    for size in _sizes(model):
        output = _try(flow, type(model).__name__, _run_whole, model, size)
        if output is not None:
            flow.failures.clear()
            break
    runs = [(output, True)]
    if _is_classifier(model) and _unseen(model, flow):
        with in_mode(model, training=True):  # InceptionV3's auxiliary head
            _run_losses(model, flow)
    names = [name for name, child in model.named_children()
             if output is None or _unseen(child, flow)]
    if names:  # what runs in training only, or not in this way
        feats = _try(flow, 'extract_feat', model.extract_feat,
                     _image(model, size))
        failures = len(flow.failures)
        for name in names:
            runs += _run_module(model.get_submodule(name), name, flow, feats,
                                whole=False)
        if feats is not None and len(flow.failures) == failures:
            flow.failures.clear()  # each part has run
    return runs


def _run_training(model: nn.Module, flow: Flow) -> list[tuple[Any, bool]]:
    """The losses, if boxes, masks and labels are enough for them."""
    if hasattr(model, 'extract_feat') and _run_losses(model, flow):
        return []
    return _run(model, flow)


def _run_losses(model: nn.Module, flow: Flow) -> bool:
    sizes = _sizes(model) if _is_classifier(model) else SIZES[:1]
    for size in sizes:
        if _try(flow, type(model).__name__, _losses, model,
                size) is not None:
            flow.failures.clear()
            return True
    return False


def _try(flow: Flow, what: str, run: Callable, *args) -> Any:
    """Run it; of what fails, what ran before has been seen all the same."""
    try:
        return run(*args)
    except Exception as error:  # any: it is a model's own code
        text = str(error).partition('\n')[0]
        flow.failures.append(f'{what}: {type(error).__name__}: {text}')
        return None


def _unseen(module: nn.Module, flow: Flow) -> bool:
    return any(is_norm(child) and id(child) not in flow.ran
               for child in module.modules())


def _is_classifier(model: nn.Module) -> bool:
    """Whether it is mmpretrain's, which need not be installed."""
    return any(cls.__module__.startswith('mmpretrain.models.classifiers')
               for cls in type(model).__mro__)


def _sizes(model: nn.Module) -> tuple:
    return CLASSIFIER_SIZES if _is_classifier(model) else SIZES


def _run_whole(model: nn.Module, size: tuple) -> Any:
    image = _image(model, size)
    samples = [_sample(model, size)]
    if not hasattr(model, 'roi_head'):
        return model(image, samples, mode='tensor')
    # As its _forward(), but with few boxes: a thousand take seconds.
    feats = model.extract_feat(image)
    return feats, model.roi_head.forward(
        feats, _proposals(model, feats, samples), samples)


def _proposals(model: nn.Module, feats: Any, samples: list) -> list:
    """Boxes, with whatever the detector's first stage gives to them."""
    if getattr(model, 'rpn_head', None) is None:
        return [samples[0].proposals]
    return [boxes[:BOXES] for boxes in model.rpn_head.predict(
        feats, samples, rescale=False)]


def _losses(model: nn.Module, size: tuple) -> Any:
    with _few_boxes(model):
        return model(_image(model, size), [_sample(model, size)],
                     mode='loss')


@contextmanager
def _few_boxes(model: nn.Module) -> Iterator[None]:
    """Let the samplers of a second stage take a few, not hundreds."""
    samplers = [
        sampler for module in model.modules()
        for value in vars(module).values()
        for sampler in (value if isinstance(value, list) else [value])
        if hasattr(sampler, 'pos_fraction')]
    numbers = [sampler.num for sampler in samplers]
    for sampler in samplers:
        sampler.num = 2 * BOXES
    try:
        yield
    finally:
        for sampler, number in zip(samplers, numbers, strict=True):
            sampler.num = number


def _image(model: nn.Module, size: tuple) -> Tensor:
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    return _map(3 if mean is None else len(mean), size, model)


def _map(channels: int, size: tuple, model: nn.Module,
         level: int = 0) -> Tensor:
    like = next(model.parameters(), torch.empty(0))
    size = [side >> level for side in size]
    return torch.randn(1, channels, *size).to(like.dtype)


def _channels(module: nn.Module) -> int | None:
    """Those of the first layer that takes a map."""
    for child in module.modules():
        if isinstance(child, nn.modules.conv._ConvNd):
            return child.in_channels
        if is_norm(child):
            return getattr(child, 'num_features', None) or getattr(
                child, 'num_channels', None)
    return None


def _sample(model: nn.Module, shape: tuple) -> Any:
    # Here: this module is imported with the package, also without these.
    if _is_classifier(model):
        from mmpretrain.structures import DataSample
        return DataSample().set_gt_label(0)
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData
    sample = DetDataSample(metainfo=dict(
        img_id=0, img_shape=shape, ori_shape=shape, pad_shape=shape,
        batch_input_shape=shape, scale_factor=(1., 1.)))
    boxes = torch.tensor([[0., 0., shape[1] / 2, shape[0] / 2]] * BOXES)
    sample.proposals = InstanceData(bboxes=boxes)
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.zeros(BOXES, dtype=torch.long),
        masks=BitmapMasks(np.ones((BOXES, *shape), np.uint8), *shape))
    sample.ignored_instances = InstanceData(bboxes=boxes[:0])
    sample.gt_sem_seg = PixelData(
        sem_seg=torch.zeros((1, *shape), dtype=torch.long))
    return sample


def _run_module(module: nn.Module, path: str, flow: Flow, feats: Any = None,
                whole: bool = True) -> list[tuple[Any, bool]]:
    """Run a module on the first input that it takes; else its children."""
    runs, before, failures = [], set(flow.norms), list(flow.failures)
    has_forward = type(module).forward is not nn.Module.forward
    if has_forward:
        for inputs in _guesses(module, feats):
            output = _try(flow, path or type(module).__name__, module, inputs)
            if output is not None:
                runs.append((output, whole))
                flow.failures[:] = failures
                break
        else:  # what came before it failed may go anywhere
            flow.escaped |= flow.norms.keys() - before - {
                norm for act in flow.acts if act.mark and act.mark.pure
                for norm in act.mark.norms}
        if not whole and feats is None:
            flow.apart |= flow.norms.keys() - before
    for name, child in module.named_children():
        if _unseen(child, flow):
            runs += _run_module(child, f'{path}.{name}'.strip('.'), flow,
                                whole=whole and not has_forward)
    return runs


def _guesses(module: nn.Module, feats: Any) -> Iterator[Any]:
    """Inputs that a module may take, the likeliest first."""
    if feats is not None:
        yield feats
    given = getattr(module, 'in_channels', None)
    if isinstance(given, (list, tuple)):
        yield tuple(_map(channels, MAP, module, i)
                    for i, channels in enumerate(given))
    channels = given if isinstance(given, int) else _channels(module)
    if channels is not None:
        yield _map(channels, MAP, module)
        yield tuple(_map(channels, MAP, module, i) for i in range(LEVELS))


@contextmanager
def _without_gpu(model: nn.Module) -> Iterator[None]:
    """Let what mmcv can run on a GPU only give something of its shape.

    And its own RoIAlign stand for torchvision's, which may not be there.
    """
    try:
        from mmcv.ops import (
            CARAFEPack,
            DeformRoIPoolPack,
            MaskedConv2d,
            ModulatedDeformRoIPoolPack,
        )
    except ImportError:  # mmcv-lite has no operations
        yield
        return

    def enlarge(layer, x):
        return F.interpolate(x, scale_factor=layer.scale_factor)

    def convolve(layer, x, mask=None):
        return nn.Conv2d.forward(layer, x)

    def pool(layer, x, rois):
        return x.new_zeros(len(rois), layer.output_channels,
                           *layer.output_size)

    standins = {CARAFEPack: enlarge, MaskedConv2d: convolve,
                DeformRoIPoolPack: pool, ModulatedDeformRoIPoolPack: pool}
    changed = [module for module in model.modules()
               if type(module) in standins]
    poolers = [module for module in model.modules()
               if getattr(module, 'use_torchvision', False)]
    for module in changed:
        module.forward = partial(standins[type(module)], module)
    for module in poolers:
        module.use_torchvision = False
    try:
        yield
    finally:
        for module in changed:
            del module.forward
        for module in poolers:
            module.use_torchvision = True
