"""Change the settings of a stock config that would be wrong under a norm.

mmdet would train with them all the same, without an error.
"""

import re
from typing import Any

from mmengine.model import PretrainedInit

from .config import (
    class_of,
    default_of,
    dicts_of,
    is_over_tokens,
    planned_parts,
    takes,
)
from .family import models
from .norms import STANDARDIZED, NormPlan

# Where OpenMMLab's, OneDL's and torchvision's checkpoints live; all other
# paths are the user's own, and theirs to judge.
ZOOS = ('torchvision://', 'open-mmlab://', 'openmmlab://', 'mmcls://',
        'modelzoo://', 'https://download.openmmlab.com/',
        'https://mmassets.onedl.ai/', 'https://download.pytorch.org/')


def adjust_settings(model_cfg: dict, plan: NormPlan) -> list[str]:
    """Change, in place, the settings that do not fit the plan's norm.

    Args:
        model_cfg (dict): A detector's config, its norms already set.
        plan (NormPlan): What ``model.norm_cfg`` asks for.

    Returns:
        list[str]: One sentence for each change, for the report.
    """
    changes = []
    if plan.scratch and pretrained(model_cfg) is not None:
        changes.append(f'{pretrained(model_cfg)} is not loaded, since from_bn '
                       'is False')
        drop_checkpoint(model_cfg)
    for key, part in planned_parts(model_cfg, plan):
        for path, cfg in dicts_of(part, key):
            checkpoint = pretrained(cfg)
            if checkpoint and is_over_tokens(cfg) and not plan.scratch:
                continue  # Swin's has none of the plan's norms
            if path == key or checkpoint is not None:
                changes += _adjust_checkpoint(path, cfg, plan)
    if plan.norm.batch and 'head' in plan.parts:
        changes += _adjust_shared_head(model_cfg, plan)
    return changes


def _adjust_checkpoint(key: str, part: dict, plan: NormPlan) -> list[str]:
    """Drop a zoo checkpoint of another norm, and what relies on it."""
    checkpoint = pretrained(part)
    if checkpoint is None:
        return unfreeze(key, part, plan)
    norm = _zoo_norm(checkpoint)
    label = _label(part, plan)
    if plan.scratch:
        why = 'is not loaded, since from_bn is False'
    elif norm is None:
        return [f'{key}: {checkpoint} is your own and stays; it should '
                f'have been trained with {label}{_or_bn(plan)}']
    elif _fits(norm, part, plan):
        return _converted(key, part, checkpoint, norm, plan)
    else:
        why = (f'was trained with {norm}, which {label} cannot go on from, '
               'and is dropped')
    drop_checkpoint(part)
    return [f'{key}: {checkpoint} {why}; training starts from scratch',
            *unfreeze(key, part, plan)]


def _converted(key: str, part: dict, checkpoint: str, norm: str,
               plan: NormPlan) -> list[str]:
    """What is said of a checkpoint that is kept."""
    if norm != 'BN' or not plan.converts:
        return []
    stays = (f'; frozen_stages={part["frozen_stages"]} stays'
             if _is_frozen(part) else '')
    return [f'{key}: {checkpoint} was trained with BN and is kept, '
            f'{_start(plan)}{stays}']


def _start(plan: NormPlan) -> str:
    how = '' if plan.from_bn is None else f' (from_bn={plan.from_bn:g})'
    return f'{plan.name} starts from its statistics{how}'


def _or_bn(plan: NormPlan) -> str:
    return f', or with BN: {_start(plan)}' if plan.converts else ''


def unfreeze(key: str, part: dict, plan: NormPlan) -> list[str]:
    """Change, in place, what would freeze the fresh weights of a part.

    Args:
        key (str): The part's key in the model's config, for the report.
        part (dict): Its config.
        plan (NormPlan): What ``model.norm_cfg`` asks for.

    Returns:
        list[str]: One sentence for each change.
    """
    changes = []
    if _is_frozen(part):
        none = _none_frozen(part)
        changes.append(f'{key}.frozen_stages: {part["frozen_stages"]} -> '
                       f'{none}, a fresh stage must train')
        part['frozen_stages'] = none
    if takes(part.get('type'), 'norm_eval') and part.get(
            'norm_eval', default_of(part['type'], 'norm_eval', True)):
        part['norm_eval'] = False
        if plan.norm.batch:  # no other norm has a state to freeze
            changes.append(f'{key}.norm_eval: True -> False, fresh statistics '
                           'must be learnt')
    return changes


def _is_frozen(part: dict) -> bool:
    none = _none_frozen(part)
    return part.get('frozen_stages', none) != none


def _none_frozen(part: dict) -> int:
    """The ``frozen_stages`` that freezes nothing: the class's default.

    -1 in most backbones, where 0 is the stem; 0 in EfficientNet.
    """
    return default_of(part.get('type'), 'frozen_stages', -1)


def pretrained(part: dict) -> str | None:
    """Path of the checkpoint that a part's config loads, if any."""
    path = part.get('pretrained')
    if isinstance(path, str) and path:
        return path
    return pretrained_in(part.get('init_cfg'))


def pretrained_in(init_cfg: Any) -> str | None:
    """Path of the checkpoint that an ``init_cfg`` loads, if any."""
    item = pretrained_item(init_cfg)
    return None if item is None else item['checkpoint']


def pretrained_item(init_cfg: Any) -> dict | None:
    """What of an ``init_cfg`` loads a checkpoint, if anything."""
    for item in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
        if isinstance(item, dict) and item.get('type') in (
                'Pretrained', PretrainedInit):
            return item
    return None


def drop_checkpoint(part: dict) -> None:
    """Let a part train from scratch."""
    part.pop('pretrained', None)
    part['init_cfg'] = None


def unfit_checkpoint(part: dict, plan: NormPlan) -> str | None:
    """The zoo checkpoint that :func:`adjust_settings` would drop, if any.

    Args:
        part (dict): The config of a part of a detector.
        plan (NormPlan): What ``model.norm_cfg`` asks for.

    Returns:
        str or None: Its path.
    """
    checkpoint = pretrained(part)
    norm = None if checkpoint is None else _zoo_norm(checkpoint)
    if norm is None or plan.scratch or _fits(norm, part, plan):
        return None
    return checkpoint


def _zoo_norm(checkpoint: str) -> str | None:
    """The norm a zoo's checkpoint was trained with; None if not a zoo's.

    The zoos name the norm where it is not BN, and weight standardization:
    ``detectron/resnet50_gn``, ``jhu/resnet50_gn_ws``.
    """
    if not checkpoint.startswith(ZOOS):
        return None
    words = re.split('[^a-z0-9]', checkpoint.rpartition('/')[2].lower())
    return ('GN' if 'gn' in words else 'BN') + ('+WS' if 'ws' in words
                                                else '')


def _fits(zoo_norm: str, part: dict, plan: NormPlan) -> bool:
    norm, _, zoo_ws = zoo_norm.partition('+')
    if bool(zoo_ws) != _has_ws(part, plan):
        return False
    if norm == 'GN':
        return plan.name == norm and plan.norm_cfg['num_groups'] == 32
    return plan.norm.batch or plan.converts


def _label(part: dict, plan: NormPlan) -> str:
    return f'{plan.name}+WS' if _has_ws(part, plan) else plan.name


def _has_ws(part: dict, plan: NormPlan) -> bool:
    """Whether a part's weights are standardized, by the plan or its config."""
    conv_cfg = part.get('conv_cfg') or {}
    return plan.ws or class_of(conv_cfg.get('type')) in STANDARDIZED


def _adjust_shared_head(model_cfg: dict, plan: NormPlan) -> list[str]:
    """Let RetinaNet's head have a batch norm per pyramid level.

    By mmdet's own class, which checkpoints are of. Every other head that
    shares its norms gets them when it is built: see :mod:`.levels`.
    """
    head = model_cfg.get('bbox_head')
    cls = class_of(head.get('type')) if isinstance(head, dict) else None
    if cls is None or cls is not models().get('RetinaHead'):
        return []
    necks = model_cfg.get('neck') or {}
    levels = next((neck['num_outs'] for neck in (
        necks[::-1] if isinstance(necks, (list, tuple)) else [necks])
                   if 'num_outs' in neck), None)
    if levels is None:
        return []
    head.update(type='RetinaSepBNHead', num_ins=levels)
    head.pop('init_cfg', None)  # it takes none, and initialises alike
    return [f'bbox_head: RetinaHead -> RetinaSepBNHead, {plan.name} per '
            'pyramid level (an optim_wrapper.paramwise_cfg now needs '
            'bypass_duplicate=True)']
