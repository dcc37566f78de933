"""Let a checkpoint say what it is: of each part the ``norm_cfg`` it has.

Its keys do not say all: they are the same where weights are standardized and
where they are plain, whatever the groups and the eps of a norm are, and a
norm in a Sequential has an index for a name. So it is said in the metadata
that PyTorch keeps beside a state dict, where a file, an average of weights
(EMA) and ``publish_model`` keep it. Weights that say nothing (of other
projects, from before, without metadata) are judged by their keys alone.
"""

import inspect
from collections import OrderedDict
from functools import partial
from typing import Any

from mmcv.cnn.bricks.norm import infer_abbr
from torch import nn

from .norm_args import NOT_ARGS
from .norms import NORMS, NormPlan, part_of
from .sites import NormSite, is_standardized

KEY = 'frn_mmdet'
# What files from before say, a key each.
OLD = dict(ws='frn_mmdet.ws', num_groups='frn_mmdet.num_groups')

# By part, a value of model.norm_cfg with every default filled in, or as much
# of it as is known.
Marks = dict[str, dict[str, Any]]


def marks_of(sites: list[NormSite], plan: NormPlan) -> Marks:
    """What there is to say of each part with a norm.

    Args:
        sites (list[NormSite]): The detector's.
        plan (NormPlan): What ``model.norm_cfg`` asks for.

    Returns:
        dict: By part. Where it is not the plan's, its weights may still be
        standardized or not.
    """
    marks = {}
    for site in sites:
        if site.norm is None:
            continue
        mark = marks.setdefault(part_of(site.path), dict(ws=False))
        if site.norm == plan.name and part_of(site.path) in plan.parts:
            mark.update(_value_of(plan) | dict(ws=mark['ws']))
        mark['ws'] |= site.ws
    return marks


def _value_of(plan: NormPlan) -> dict[str, Any]:
    defaults = {
        name: parameter.default for name, parameter
        in inspect.signature(plan.norm.layer).parameters.items()
        if name not in NOT_ARGS and parameter.default is not parameter.empty}
    value = dict(type='') | defaults | plan.norm_cfg | dict(
        type=plan.name, tlu=plan.tlu, from_bn=plan.from_bn)
    value.pop('requires_grad', None)
    return {name: _plain(argument) for name, argument in value.items()}


def _plain(value: Any) -> Any:
    """A number of NumPy as Python's: torch.load trusts no others."""
    return value.item() if hasattr(value, 'item') else value


def mark(module: nn.Module, at: str, marks: Marks) -> None:
    """Let the state dicts of a module say it from now on.

    Args:
        module (nn.Module): A detector, or something in one.
        at (str): Path of the module in the detector, '' for itself.
        marks (dict): See :func:`marks_of`.
    """
    module.register_state_dict_post_hook(
        partial(_write, at=at, marks=marks))


def _write(module: nn.Module, state_dict: dict, prefix: str, metadata: dict,
           at: str, marks: Marks) -> None:
    standardized = set()
    if any(own['ws'] for own in marks.values()):  # or have been: see fold_ws
        standardized = {
            part_of(f'{at}.{path}' if at else path)
            for path, child in module.named_modules()
            if is_standardized(child)}
    metadata[KEY] = {part: own | dict(ws=part in standardized)
                     for part, own in marks.items()}
    if set(prefix.split('.')) == {'module', ''}:
        # mmengine strips what a wrapper (DataParallel, EMA) puts before a
        # key, but looks for the metadata of '' then.
        state_dict._metadata[''][KEY] = metadata[KEY]


def read_marks(metadata: dict[str, Any]) -> Marks:
    """What a state dict says of itself.

    Args:
        metadata (dict): Of the module that it is loaded into.

    Returns:
        dict: As :func:`marks_of`, as much as there is.
    """
    marks = {part: dict(there)
             for part, there in metadata.get(KEY, {}).items()}
    for name, key in OLD.items():
        for part, value in metadata.get(key, {}).items():
            marks.setdefault(part, {}).setdefault(name, value)
    return marks


def forget_norms(state_dict: dict) -> None:
    """Let a state dict say no more which norms it has, since they changed.

    Args:
        state_dict (dict): Any; it gets metadata of its own.
    """
    metadata = getattr(state_dict, '_metadata', None)
    if metadata is None:
        return
    state_dict._metadata = OrderedDict()
    for path, entry in metadata.items():
        said = read_marks(entry)
        state_dict._metadata[path] = {
            key: value for key, value in entry.items()
            if key not in (KEY, *OLD.values())} | (
                {KEY: {part: dict(ws=there['ws']) for part, there
                       in said.items() if 'ws' in there}} if said else {})


def is_same_norm(name: str, other: str) -> bool:
    """Whether two names are of one norm, as BN and SyncBN are."""
    return name == other or all(n in NORMS for n in (name, other)) and (
        infer_abbr(NORMS[name].layer) == infer_abbr(NORMS[other].layer))
