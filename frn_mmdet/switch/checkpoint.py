"""Refuse weights that were trained with another norm."""


from mmcv.cnn.bricks.norm import infer_abbr
from torch import nn

from ..errors import ConfigError
from .norms import NORMS, NormPlan
from .sites import find_slots


def check_state_dict(model: nn.Module, state_dict: dict, prefix: str,
                     plan: NormPlan) -> None:
    """Compare the norms of a state dict with those of a switched model.

    mmengine only warns of keys that do not match, and the model would run
    on with norms that were never trained.

    Args:
        model (nn.Module): A detector, its norms switched.
        state_dict (dict): What is being loaded into it. A part that is not
            in it (a backbone alone, say) is not looked at.
        prefix (str): Of the model's keys in ``state_dict``.
        plan (NormPlan): What ``model.norm_cfg`` asks for.

    Raises:
        ConfigError: If the state dict has another norm, none, or thresholds
            that the model has not.
    """
    for slot in find_slots(model):
        if type(slot.norm) is not plan.norm.layer or slot.norm.weight is None:
            continue
        parent, _, name = f'{prefix}{slot.path}'.rpartition('.')
        if f'{parent}.{name}.weight' in state_dict or not any(
                key.startswith(f'{parent}.') for key in state_dict):
            continue
        other = _other_norm(state_dict, parent, name, plan)
        found = f'has {other} there' if other else 'has no norm there'
        raise ConfigError(
            f'the model has {plan.name} at {slot.path} but the checkpoint '
            f'{found}; set model.norm_cfg to the norm it was trained with, '
            f'or give a checkpoint trained with {plan.name}')
    own = {f'{prefix}{key}' for key in model.state_dict()}
    for key in state_dict:
        if key.endswith('.tau') and key.startswith(prefix) and key not in own:
            raise ConfigError(
                f'the checkpoint has a TLU threshold {key} but the model has '
                'none there; set model.norm_cfg.tlu=True, or give a '
                'checkpoint trained with tlu=False')


def _other_norm(state_dict: dict, parent: str, name: str,
                plan: NormPlan) -> str | None:
    """The norm that stands in the state dict where ``parent.name`` should.

    mmcv's names tell it: ``bn1`` where the model has ``frn1``.
    """
    postfix = name.removeprefix(infer_abbr(plan.norm.layer))
    for other, row in NORMS.items():
        stem = f'{parent}.{infer_abbr(row.layer)}{postfix}.'
        if any(key.startswith(stem) for key in state_dict):
            return other
    return None
