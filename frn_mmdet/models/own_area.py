"""Images of several shapes in one batch, each over its own area.

A batch is padded to its largest image. A norm that looks at one image alone,
as FRN and GN do, counts that padding in its mean, and a convolution sees what
became of it behind the border. So what is made of an image depends on whom it
is batched with. Here each image runs in the shape that it would be padded to
alone, with those of its own shape: no norm, pooling or head has to know of
any padding, and nothing of it is left.

In test the whole detector runs once a shape. In training the losses are over
the batch, so what makes maps runs once a shape, backbone, neck and dense
heads, and their maps are put together to those of the batch.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..errors import ConfigError

# What has no maps to make of maps: what makes them, and what has taken a
# proposal of each image of the batch with them.
NOT_WATCHED = ('data_preprocessor', 'backbone', 'neck', 'roi_head')

PLAIN = (bool, int, float, str, type(None))  # of no image

# Images of the same shape: the shape, and their numbers in the batch.
Groups = dict[tuple[int, int], list[int]]


def groups_of(inputs: Any, samples: list | None) -> Groups:
    """The images of each shape; empty where all have the same.

    Args:
        inputs (Tensor): The batch, (N, C, H, W).
        samples (list[DetDataSample], optional): Of the images. Their
            ``pad_shape`` is what mmdet's preprocessor pads each to alone.
    """
    groups = defaultdict(list)
    if not isinstance(inputs, Tensor) or not samples:
        return {}
    for number, sample in enumerate(samples):
        if 'pad_shape' not in sample:
            return {}
        groups[tuple(sample.pad_shape[:2])].append(number)
    return groups if len(groups) > 1 else {}


def predict_by_shape(predict: Callable, inputs: Tensor, samples: list,
                     *args, **kwargs) -> list:
    """Let a detector predict for the images of each shape by themselves.

    Args:
        predict (callable): The detector's.
        inputs (Tensor): The batch, (N, C, H, W).
        samples (list[DetDataSample]): Of the images. The batch's shape that
            they tell becomes the one that the image ran in.
        *args: Of ``predict``.
        **kwargs: Of ``predict``.

    Returns:
        list[DetDataSample]: In the order of the batch.
    """
    groups = groups_of(inputs, samples)
    if not groups:
        return predict(inputs, samples, *args, **kwargs)
    results = {}
    for shape, numbers in groups.items():
        own = [samples[number] for number in numbers]
        for sample in own:
            sample.set_metainfo(dict(batch_input_shape=shape))
        results |= zip(numbers, predict(
            cut(inputs, shape, numbers), own, *args, **kwargs), strict=True)
    return [results[number] for number in range(len(samples))]


class Batch:
    """A batch of images of several shapes, during one call of a detector.

    Args:
        inputs (Tensor): (N, C, H, W).
        groups (dict): See :func:`groups_of`.
    """

    def __init__(self, inputs: Tensor, groups: Groups) -> None:
        self.inputs = inputs
        self.groups = groups
        self._maps = []  # each of the batch, with those of the groups

    def extract_feat(self, extract_feat: Callable, *args, **kwargs) -> Any:
        """The maps of the batch, each image's over its own area, else 0.

        Args:
            extract_feat (callable): Makes them of images alone.
            *args: Of ``extract_feat``.
            **kwargs: Of ``extract_feat``.
        """
        return self._join(
            [extract_feat(cut(self.inputs, shape, numbers), *args, **kwargs)
             for shape, numbers in self.groups.items()],
            'extract_feat', _zero_outside)

    def by_group(self, maps: Any) -> list | None:
        """Each group's, of maps that are the batch's; else None."""
        if not isinstance(maps, (list, tuple)):
            return None
        own = [next((own for joined, own in self._maps if joined is one),
                    None) for one in maps]
        if not own or None in own:
            return None
        return [type(maps)(group) for group in zip(*own, strict=True)]

    def join_outputs(self, outputs: list, head: str) -> Any:
        """What a head made of each group, put together.

        Outside of an image it is the least of the image's map: what a head
        is the surest of that there is no object.
        """
        return self._join(outputs, head, _least_outside)

    def _join(self, own: list, name: str, outside: Callable) -> Any:
        first = own[0]
        if isinstance(first, dict):
            return {key: self._join([maps[key] for maps in own], name, outside)
                    for key in first}
        if isinstance(first, (list, tuple)) and (
                len({len(maps) for maps in own}) == 1):
            return type(first)(self._join(list(maps), name, outside)
                               for maps in zip(*own, strict=True))
        numbers = list(self.groups.values())
        if not all(isinstance(maps, Tensor) and maps.dim() == 4
                   and len(maps) == len(group)
                   for maps, group in zip(own, numbers, strict=True)):
            raise _not_of_maps(name)
        size = [max(maps.shape[dim] for maps in own) for dim in (2, 3)]
        order = torch.tensor(sum(numbers, [])).argsort().tolist()
        joined = torch.cat([outside(maps, size) for maps in own])[order]
        self._maps.append((joined, own))
        return joined


def cut(inputs: Tensor, shape: tuple[int, int], numbers: list) -> Tensor:
    """Some images of a batch, (N, C, H, W), without what is outside."""
    height, width = shape
    return inputs[numbers, :, :height, :width]


def _zero_outside(maps: Tensor, size: list[int]) -> Tensor:
    return pad(maps, (0, size[1] - maps.shape[3], 0, size[0] - maps.shape[2]))


def _least_outside(maps: Tensor, size: list[int]) -> Tensor:
    least = maps.detach().amin((2, 3), keepdim=True)
    return _zero_outside(maps - least, size) + least


# Of the detector that runs. It ends with the call, is a thread's own, and
# knows its inputs: another detector that runs within is not concerned.
_BATCH = ContextVar('batch of several shapes', default=None)


@contextmanager
def over_own_areas(inputs: Any, samples: list | None,
                   asked: bool = True) -> Iterator[None]:
    """Let the maps of these inputs be made over each image's own area.

    Args:
        inputs (Tensor): The batch, (N, C, H, W).
        samples (list[DetDataSample], optional): Of the images.
        asked (bool): False: do nothing.
    """
    groups = groups_of(inputs, samples) if asked else {}
    if not groups:  # what is compiled or exported has one shape
        yield
        return
    token = _BATCH.set(Batch(inputs, groups))
    try:
        yield
    finally:
        _BATCH.reset(token)


def batch_of(inputs: Any) -> Batch | None:
    """The batch whose maps are to be made so, if these are its inputs."""
    batch = _BATCH.get()
    return batch if batch is not None and batch.inputs is inputs else None


def watch_heads(model: nn.Module) -> None:
    """Let each child of a detector that takes maps have them by shape.

    Not by hooks: mmdet also calls ``head.forward``, which runs none.
    """
    for name, child in model.named_children():
        if name not in NOT_WATCHED:
            child.forward = partial(_by_shape, child.forward,
                                    type(child).__name__)


def _by_shape(forward: Callable, head: str, *args, **kwargs) -> Any:
    batch = _BATCH.get()
    groups = batch.by_group(args[0]) if batch and args else None
    if not groups:
        return forward(*args, **kwargs)
    # Whatever else it takes may be of the batch's images, one by one.
    if not all(isinstance(value, PLAIN)
               for value in (*args[1:], *kwargs.values())):
        raise _not_of_maps(head)
    return batch.join_outputs(
        [forward(maps, *args[1:], **kwargs) for maps in groups], head)


def _not_of_maps(name: str) -> ConfigError:
    return ConfigError(
        f'model.norm_cfg.own_area: {name} takes or makes something else than '
        'maps (N, C, H, W) of images, so it cannot run once for each shape of '
        "a batch; choose False, or 'test' for training")
