"""Let a checkpoint say of its weights what their keys do not.

These are the same where weights are standardized and where they are plain,
and whatever the groups of a norm are. So it is said in the metadata that
PyTorch keeps beside a state dict, where a file, an average of weights (EMA)
and ``publish_model`` keep it. Weights without it, or without any metadata,
are taken as they are.
"""

from functools import partial
from typing import Any

from torch import nn

from ..errors import ConfigError
from .norms import NormPlan, part_of
from .sites import NormSite

WS = 'frn_mmdet.ws'
GROUPS = 'frn_mmdet.num_groups'

Marks = dict[str, dict[str, Any]]


def marks_of(sites: list[NormSite], plan: NormPlan) -> Marks:
    """What there is to say of each part with a norm.

    Args:
        sites (list[NormSite]): The detector's.
        plan (NormPlan): What ``model.norm_cfg`` asks for.

    Returns:
        dict: By key of the metadata, and by part: whether its weights are
        standardized; the groups of the plan's norm, if it has any.
    """
    parts = [part_of(site.path) for site in sites if site.norm]
    marks = {WS: dict.fromkeys(parts, False) | {
        part_of(site.path): True for site in sites if site.ws}}
    if 'num_groups' in plan.norm_cfg:
        marks[GROUPS] = {part: plan.norm_cfg['num_groups'] for part in parts
                         if part in plan.parts}
    return marks


def mark(module: nn.Module, marks: Marks) -> None:
    """Let the state dicts of a module say it from now on.

    Args:
        module (nn.Module): A detector, or a part of one.
        marks (dict): See :func:`marks_of`.
    """
    module.register_state_dict_post_hook(partial(_write, marks=marks))


def _write(module: nn.Module, state_dict: dict, prefix: str, metadata: dict,
           marks: Marks) -> None:
    metadata.update({key: dict(parts) for key, parts in marks.items()})


def check_marks(metadata: dict[str, Any], state_dict: dict, prefix: str,
                at: str, marks: Marks) -> None:
    """Refuse weights of another kind.

    Args:
        metadata (dict): Of the module, as a state dict has it.
        state_dict (dict): What is being loaded.
        prefix (str): Of the module's keys in ``state_dict``.
        at (str): Path of the module in the detector, '' for itself.
        marks (dict): Of the model, see :func:`marks_of`.

    Raises:
        ConfigError: If a part was trained with standardized weights and the
            model's are plain, or the reverse, or with other groups.
    """
    for key, own in marks.items():
        there = metadata.get(key, {})
        for part in own:
            if part in there and there[part] != own[part] and _has(
                    state_dict, prefix, at, part):
                raise ConfigError(_WORDS[key](part, there[part], own[part]))


def _ws_words(part: str, there: bool, own: bool) -> str:
    trained, has = ('with', 'none') if there else ('without', 'it')
    return (f'the {part} of the checkpoint was trained {trained} weight '
            f'standardization and the model has {has}; set '
            f'model.norm_cfg.ws={there}, or give a checkpoint trained with '
            f'ws={own}')


def _group_words(part: str, there: int, own: int) -> str:
    return (f'the {part} of the checkpoint was trained with num_groups='
            f'{there} and the model has {own}; set '
            f'model.norm_cfg.num_groups={there}, or give a checkpoint '
            f'trained with num_groups={own}')


_WORDS = {WS: _ws_words, GROUPS: _group_words}


def _has(state_dict: dict, prefix: str, at: str, part: str) -> bool:
    """Whether a state dict has something of a part."""
    return any(
        part_of(f'{at}.{key[len(prefix):]}' if at else key[len(prefix):])
        == part for key in state_dict if key.startswith(prefix))
