"""Compare what an exported detector finds with what PyTorch finds."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import nn

from ..errors import ConfigError
from ..models.norm_switch import NormSwitch
from ..models.own_area import cut, groups_of
from ..utils.images import image_files, read_image
from .agreement import Agreement, lowest_kept
from .retinanet import Detections
from .runtimes import Run, as_arrays, open_in


class Row(NamedTuple):
    """What was compared, and how it went.

    Attributes:
        runtime (str): One of :data:`.runtimes.RUNTIMES`.
        size (int or None): The images' longer side in pixels; None: as the
            config has it.
        batch (int): Images at a time.
        found (Agreement): With what PyTorch found.
    """

    runtime: str
    size: int | None
    batch: int
    found: Agreement


def check_file(model: nn.Module, file: Path, folder: Path, count: int,
               sizes: list[int | None], batch_sizes: list[int],
               runtimes: list[str]) -> list[Row]:
    """Run a file and the detector that it was made of on the same images.

    Args:
        model (nn.Module): In test mode, with its config as ``cfg``.
        file (Path): The ONNX.
        folder (Path): Of the images.
        count (int): Images at most.
        sizes (list[int or None]): Of an image's longer side, in pixels; None
            stands for the config's own.
        batch_sizes (list[int]): Images at a time.
        runtimes (list[str]): Of :data:`.runtimes.RUNTIMES`.

    Returns:
        list[Row]: One for each size, batch size and runtime.

    Raises:
        ConfigError: If file, images or a runtime are not there, or the file
            was made of another detector.
    """
    if not file.is_file():
        raise ConfigError(f'OUT: no file {file}; export it without --check')
    detections = Detections(model)
    runs = {name: open_in(name, file) for name in runtimes}
    images = image_files(folder, count)
    rows = []
    for size in sizes:
        pipeline = pipeline_of(model.cfg, size)
        for batch in batch_sizes:
            found = {name: Agreement() for name in runs}
            for i in range(0, len(images), batch):
                compare(detections, runs, pipeline, images[i:i + batch], found)
            rows += [Row(name, size, batch, found[name]) for name in runs]
    return rows


def pipeline_of(config: Config, size: int | None) -> Compose:
    """The config's test pipeline, at another size if given."""
    steps = [step for step in get_test_pipeline_cfg(config)
             if _name(step) != 'LoadAnnotations']
    if size is not None:
        resizes = [step for step in steps if _name(step) == 'Resize']
        if not resizes:
            raise ConfigError('--sizes: the test pipeline has no Resize')
        resizes[0].update(scale=(size, size), keep_ratio=True)
    return Compose(steps)


def compare(detections: Detections, runs: dict[str, Run], pipeline: Compose,
            files: list[Path], found: dict[str, Agreement]) -> None:
    """Run one batch everywhere; add to what was found."""
    model, asked = detections.detector, detections.settings
    data = pseudo_collate([read_image(pipeline, file) for file in files])
    data = model.data_preprocessor(data, False)
    sizes = torch.tensor(
        [sample.img_shape[:2] for sample in data['data_samples']])
    with torch.no_grad():
        samples = model.predict(
            data['inputs'], data['data_samples'], rescale=False)
    wanted = [_of_sample(sample.pred_instances) for sample in samples]
    for numbers, inputs in parts_of(model, **data):
        arrays = as_arrays(images=inputs, sizes=sizes[numbers])
        for name, run in runs.items():
            outputs = run(arrays)
            if outputs[0].shape[1] > asked.max_per_img:
                raise ConfigError(
                    f'model.test_cfg.max_per_img is {asked.max_per_img}, but '
                    f'the file finds {outputs[0].shape[1]}; give the config '
                    'that it was exported with')
            for number, dets, labels in zip(numbers, *outputs, strict=True):
                ours, there = wanted[number], labels >= 0
                lowest = lowest_kept(
                    ours[0][:, 4], asked.score_thr, asked.max_per_img)
                found[name].add(ours, (dets[there], labels[there]), lowest)


def parts_of(model: nn.Module, inputs: torch.Tensor,
             data_samples: list) -> list[tuple[list[int], torch.Tensor]]:
    """What to give a file of a batch, as the detector runs it.

    Args:
        model (nn.Module): The detector.
        inputs (Tensor): The batch, (N, C, H, W).
        data_samples (list[DetDataSample]): Of the images.

    Returns:
        list: Numbers of images in the batch, and these images; more than one
        entry where they have several shapes and ``own_area`` holds.
    """
    alone = isinstance(model, NormSwitch) and model.has_own_area(
        training=False)
    groups = groups_of(inputs, data_samples) if alone else {}
    return [(numbers, cut(inputs, shape, numbers))
            for shape, numbers in groups.items()] or [
                (list(range(len(inputs))), inputs)]


def _name(step: dict) -> str:
    """Of a transform's class, which a config may hold itself."""
    return getattr(step['type'], '__name__', str(step['type'])).split('.')[-1]


def _of_sample(instances: Any) -> tuple[np.ndarray, np.ndarray]:
    """Boxes with scores, and labels, of what ``predict`` found."""
    dets = np.c_[instances.bboxes.numpy(), instances.scores.numpy()]
    return dets, instances.labels.numpy()
