"""Run a model once, on inputs as small as its strides allow."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from .flow import Flow, failure, in_mode, watch_flow
from .norms import STANDARDIZED, is_norm

# Height and width of the image, in pixels: at a stride of 128 a row of two
# elements is left, so that a map of 1x1 is one that was pooled. The others
# are for where that is too small: kernels that are larger than the last
# map, and modules that are made for images of one size.
SIZES = ((128, 256), (512, 512), (1024, 1024), (640, 640), (800, 800),
         (256, 256), (320, 320), (416, 416))
# A classifier is made for images of one size, which nothing in it says.
CLASSIFIER_SIZES = ((224, 224), (299, 299), (384, 384))
# Of the first map that a module on its own is given.
MAPS = ((64, 64), (128, 128), (256, 256))
LEVELS = 5  # of a pyramid, where nothing says how many
BOXES = 2  # for the heads that look at boxes; each another one
# How PyTorch, and whoever checks, says that a size does not fit.
SIZE_ERRORS = (AssertionError, IndexError, RuntimeError, ValueError)


def flow_of(model: nn.Module, training: bool = False) -> Flow:
    """Watch a small run of a detector, or of any other module.

    A detector gets one image with two boxes, a classifier one with a label.
    They compute what their heads give (mode 'tensor') or, where that does not
    run, what users run: predictions, losses; in training the losses first.
    Anything else gets a map, or one for each level, of the channels that its
    ``in_channels`` or its first layer asks for. What cannot run is noted in
    ``failures``, and its parts run on their own.

    Args:
        model (nn.Module): Its parameters may be on the meta device. What
            runs is a copy.
        training (bool): Whether in training mode. Defaults to False.

    Returns:
        Flow: What was seen.
    """

    def run(model: nn.Module, flow: Flow) -> list[tuple[Any, bool]]:
        convolve_plainly(model)
        _do_without_gpu(model)
        with torch.device(_like(model).device):
            if hasattr(model, 'extract_feat'):
                return _run_detector(model, flow, training)
            return _run_module(model, '', flow)

    return watch_flow(model, run, training)


def _run_detector(model: nn.Module, flow: Flow,
                  training: bool) -> list[tuple[Any, bool]]:
    """Run the whole, in the first way that runs; then what has not run."""
    ways = [_maps, _predictions, _losses]
    if training:
        ways = [_losses, _maps, _predictions]
    way, image, output = _first_that_runs(model, flow, ways)
    runs = [(output, True)]
    if training and way is _losses:
        return runs
    if not training and way is _maps and unseen(model, flow):
        output, _ = _try(_predictions, model, image)
        runs.append((output, True))
    if _is_classifier(model) and unseen(model, flow):
        with in_mode(model, training=True):  # InceptionV3's auxiliary head
            _first_that_runs(model, flow, [_losses])
    names = [name for name, child in model.named_children()
             if way is None or unseen(child, flow)]
    if names:  # what runs in training only, or not in this way
        _, _, feats = _first_that_runs(model, flow, [_features], image)
        failures = len(flow.failures)
        for name in names:
            runs += _run_module(model.get_submodule(name), name, flow, feats,
                                whole=False)
        if feats is not None and len(flow.failures) == failures:
            flow.failures.clear()  # each part has run
    return runs


def _first_that_runs(
        model: nn.Module, flow: Flow, ways: list[Callable],
        image: Tensor | None = None
) -> tuple[Callable | None, Tensor | None, Any]:
    """Find a way to run a detector, and an image for it.

    Of what fails, what ran before has been seen all the same.

    Returns:
        tuple: The way, the image, and what came out; each None if none runs.
    """
    failed = {}
    for images in _images(model) if image is None else [[image]]:
        said = defaultdict(str)
        may_be_size = False
        for image in images:
            for way in ways:
                output, error = _try(way, model, image)
                if error is None:
                    return way, image, output
                may_be_size |= isinstance(error, SIZE_ERRORS)
                said[way] += str(error)
                failed.setdefault(way, failure(type(model).__name__, error))
        if not may_be_size:
            break
        # Two that say the same fail in the same place.
        ways = list({said[way]: way for way in ways[::-1]}.values())[::-1]
    flow.failures += [failed.get(_predictions, next(iter(failed.values())))]
    return None, None, None


def _try(run: Callable, *args) -> tuple[Any, Exception | None]:
    """What it gives, or why it gives nothing."""
    try:
        output = run(*args)
    except Exception as error:  # any: it is a model's own code
        return None, error
    if output is None:
        return None, TypeError('it gives nothing')
    return output, None


def unseen(module: nn.Module, flow: Flow) -> bool:
    """Whether a norm of a module has not run."""
    return any(is_norm(child) and id(child) not in flow.ran
               for child in module.modules())


def _is_classifier(model: nn.Module) -> bool:
    """Whether it is mmpretrain's, which need not be installed."""
    return any(cls.__module__.startswith('mmpretrain.models.classifiers')
               for cls in type(model).__mro__)


def _features(model: nn.Module, image: Tensor) -> Any:
    return model.extract_feat(image)


def _maps(model: nn.Module, image: Tensor) -> Any:
    samples = [_sample(model, image)]
    if not hasattr(model, 'roi_head'):
        return model(image, samples, mode='tensor')
    # As its _forward(), but with few boxes: a thousand take seconds.
    feats = model.extract_feat(image)
    return feats, model.roi_head.forward(
        feats, _proposals(model, feats, samples), samples)


def _predictions(model: nn.Module, image: Tensor) -> Any:
    return model(image, [_sample(model, image)], mode='predict')


def _losses(model: nn.Module, image: Tensor) -> Any:
    with _few_boxes(model):
        return model(image, [_sample(model, image)], mode='loss')


def _proposals(model: nn.Module, feats: Any, samples: list) -> list:
    """Boxes, with whatever the detector's first stage gives to them."""
    if getattr(model, 'rpn_head', None) is None:
        return [samples[0].proposals]
    return [boxes[:BOXES] for boxes in model.rpn_head.predict(
        feats, samples, rescale=False)]


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


def _images(model: nn.Module) -> Iterator[Iterator[Tensor]]:
    """For each size one of each number of channels that the model may take."""
    backbone = getattr(model, 'backbone', model)
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    given = [_channels(backbone), 3 if mean is None else len(mean),
             getattr(backbone, 'in_channels', None)]  # of several streams
    given = dict.fromkeys(n for n in given if isinstance(n, int))
    for size in CLASSIFIER_SIZES if _is_classifier(model) else SIZES:
        yield (_map(channels, size, model) for channels in given)


def _map(channels: int, size: tuple, model: nn.Module,
         level: int = 0) -> Tensor:
    size = [side >> level for side in size]
    return torch.randn(1, channels, *size).to(_like(model).dtype)


def _like(model: nn.Module) -> Tensor:
    """Something of a model's type and device."""
    return next(model.parameters(), torch.empty(0))


def _channels(module: nn.Module) -> int | None:
    """Those of the first layer that takes a map."""
    for child in module.modules():
        if isinstance(child, nn.modules.conv._ConvNd):
            return child.in_channels
        if is_norm(child):
            return getattr(child, 'num_features', None) or getattr(
                child, 'num_channels', None)
    return None


def _sample(model: nn.Module, image: Tensor) -> Any:
    # Here: this module is imported with the package, also without these.
    if _is_classifier(model):
        from mmpretrain.structures import DataSample
        return DataSample().set_gt_label(0)
    shape = height, width = tuple(image.shape[2:])
    metainfo = dict(
        img_id=0, img_shape=shape, ori_shape=shape, pad_shape=shape,
        batch_input_shape=shape, scale_factor=(1., 1.))
    try:
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks
    except ImportError:  # the scores of mmsegmentation need no more
        return BaseDataElement(metainfo=metainfo)
    sample = DetDataSample(metainfo=metainfo)
    boxes = torch.tensor([[0., 0., width / 2, height / 2],
                          [width / 4, height / 4, width, height]])
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
    runs, before = [], set(flow.norms)
    has_forward = type(module).forward is not nn.Module.forward
    if has_forward:
        errors = []
        for inputs in _guesses(module, feats, errors):
            output, error = _try(module, inputs)
            if error is None:
                runs.append((output, whole))
                break
            errors.append(error)
        else:  # what came before it failed may go anywhere
            flow.failures += [failure(path or type(module).__name__, error)
                              for error in errors]
            flow.escaped |= flow.norms.keys() - before - {
                norm for act in flow.acts if act.mark and act.mark.pure
                for norm in act.mark.norms}
        if not whole and feats is None:
            flow.apart |= flow.norms.keys() - before
    for name, child in module.named_children():
        if unseen(child, flow):
            runs += _run_module(child, f'{path}.{name}'.strip('.'), flow,
                                whole=whole and not has_forward)
    return runs


def _guesses(module: nn.Module, feats: Any,
             errors: list[Exception]) -> Iterator[Any]:
    """Inputs that a module may take, the likeliest first.

    ``errors`` came of the guesses so far.
    """
    if feats is not None:
        yield feats
    given = getattr(module, 'in_channels', None)
    channels = given if isinstance(given, int) else _channels(module)
    for size in MAPS:
        if isinstance(given, (list, tuple)):
            yield tuple(_map(channels, size, module, i)
                        for i, channels in enumerate(given))
        if channels is not None:
            yield _map(channels, size, module)
            yield tuple(_map(channels, size, module, i)
                        for i in range(LEVELS))
        if not any(isinstance(error, SIZE_ERRORS) for error in errors):
            break


def convolve_plainly(model: nn.Module) -> None:
    """Let, in place, zeros that would be standardized stay zeros."""

    def convolve(conv, x):
        return nn.Conv2d._conv_forward(conv, x, conv.weight, conv.bias)

    for module in model.modules():
        if type(module) in STANDARDIZED:
            module.forward = partial(convolve, module)


def _do_without_gpu(model: nn.Module) -> None:
    """Let, in place, what mmcv runs on a GPU only give something of its shape.

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
    for module in model.modules():
        if type(module) in standins:
            module.forward = partial(standins[type(module)], module)
        if getattr(module, 'use_torchvision', False):
            module.use_torchvision = False
