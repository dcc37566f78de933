"""Let a checkpoint say whether its weights were standardized.

Its keys do not: those of a plain convolution are the same. So it is said in
the metadata that PyTorch keeps beside a state dict, where a file, an average
of weights (EMA) and ``publish_model`` keep it. Weights without it, or without
any metadata, are taken as they are.
"""

from functools import partial
from typing import Any

from torch import nn

from ..errors import ConfigError
from .norms import part_of
from .sites import NormSite

KEY = 'frn_mmdet.ws'


def ws_of_parts(sites: list[NormSite]) -> dict[str, bool]:
    """Whether weights are standardized, for each part with a norm."""
    parts = {part_of(site.path): False for site in sites if site.norm}
    return parts | {part_of(site.path): True for site in sites if site.ws}


def mark(module: nn.Module, ws: dict[str, bool]) -> None:
    """Let the state dicts of a module say it from now on.

    Args:
        module (nn.Module): A detector, or a part of one.
        ws (dict[str, bool]): See :func:`ws_of_parts`.
    """
    module.register_state_dict_post_hook(partial(_write, ws=ws))


def _write(module: nn.Module, state_dict: dict, prefix: str, metadata: dict,
           ws: dict[str, bool]) -> None:
    metadata[KEY] = dict(ws)


def check_mark(metadata: dict[str, Any], state_dict: dict, prefix: str,
               at: str, ws: dict[str, bool]) -> None:
    """Refuse weights of the other kind.

    Args:
        metadata (dict): Of the module, as a state dict has it.
        state_dict (dict): What is being loaded.
        prefix (str): Of the module's keys in ``state_dict``.
        at (str): Path of the module in the detector, '' for itself.
        ws (dict[str, bool]): Of the model, see :func:`ws_of_parts`.

    Raises:
        ConfigError: If a part was trained with standardized weights and the
            model's are plain, or the reverse.
    """
    there = metadata.get(KEY, {})
    for part in ws.keys() & there.keys():
        if ws[part] != there[part] and _has(state_dict, prefix, at, part):
            trained, has = ('with', 'none') if there[part] else (
                'without', 'it')
            raise ConfigError(
                f'the {part} of the checkpoint was trained {trained} weight '
                f'standardization and the model has {has}; set '
                f'model.norm_cfg.ws={there[part]}, or give a checkpoint '
                f'trained with ws={ws[part]}')


def _has(state_dict: dict, prefix: str, at: str, part: str) -> bool:
    """Whether a state dict has something of a part."""
    return any(
        part_of(f'{at}.{key[len(prefix):]}' if at else key[len(prefix):])
        == part for key in state_dict if key.startswith(prefix))
