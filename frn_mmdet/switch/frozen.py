"""Let a convolution train that a checkpoint has in another shape.

mmengine leaves it as it was initialised, and ``frozen_stages`` would keep it
so: the first one of a detector for thermal images, say, whose other weights
are ImageNet's.
"""

from mmengine.dist import get_world_size
from torch import nn

from ..errors import ConfigError
from .config import default_of
from .incoming import Incoming
from .norm_places import misfits_of
from .norms import NormPlan, is_norm, part_of


def unfreeze_misfits(incoming: Incoming) -> list[str]:
    """Set, in place, ``frozen_stages`` to none where such a one is frozen.

    Of the whole part: what comes behind the convolution was trained on
    another's maps, and mmdet's backbones freeze from the first stage on. A
    part of which nothing trains is left alone: it is a teacher, or an average
    of another (EMA).

    Returns:
        list[str]: One sentence for each part.

    Raises:
        ConfigError: If there are several processes: they share the gradients
            of what trained when the model was distributed.
    """
    said, plan = [], incoming.plan
    misfits = {path: conv for path, conv in misfits_of(incoming).items()
               if not conv.weight.requires_grad}
    for path, part in incoming.module.named_modules():
        where = incoming.where(path)
        stem = f'{path}.' if path else ''
        first = next((path for path in misfits if path.startswith(stem)), None)
        none = default_of(type(part), 'frozen_stages', -1)
        if first is None or getattr(part, 'frozen_stages', none) == none or (
                part_of(where) not in plan.parts or not any(
                    value.requires_grad for value in part.parameters())):
            continue
        there, own = (tuple(value.shape) for value in (
            incoming.state_dict[f'{incoming.prefix}{first}.weight'],
            misfits[first].weight))
        text = (f'{incoming.where(first)} has weights of shape {own} and the '
                f'checkpoint has {there}, so it is not loaded, and {where}.'
                f'frozen_stages={part.frozen_stages} would keep it as it is')
        if get_world_size() > 1:
            raise ConfigError(f'{text}; set {where}.frozen_stages={none}')
        if plan.norm.batch and getattr(part, 'norm_eval', False):
            text += (f' (norm_eval=True also keeps the statistics of its '
                     f'{plan.name})')
        said.append(f'{text}: {none} now')
        _unfreeze(part, none, plan)
    return said


def _unfreeze(part: nn.Module, none: int, plan: NormPlan) -> None:
    part.frozen_stages = none
    norms_train = plan.norm_cfg.get('requires_grad', True)
    for child in part.modules():
        trains = norms_train or not is_norm(child)
        for parameter in child.parameters(recurse=False):
            parameter.requires_grad_(trains)
