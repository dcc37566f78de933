"""The OpenMMLab packages underneath: OneDL's or OpenMMLab's own."""

try:
    import mmcv  # noqa: F401
    import mmengine
except ImportError as error:
    raise ImportError(
        'frn_mmdet needs mmengine, mmcv and mmdet, and '
        f'{error.name} is not installed. Install torch, then ninja, wheel '
        'and "setuptools<81", then pip install --no-build-isolation '
        '"frn_mmdet[onedl]" (the maintained packages) or '
        '"frn_mmdet[openmmlab]" (their originals)') from error

from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.fileio import load
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint

from .errors import ConfigError

TORCHVISION = ('torchvision://', 'modelzoo://')


def allow_own_checkpoints() -> None:
    """Let mmengine 0.10.7 load what it saved, on torch 2.6 and later.

    A checkpoint holds the log (``HistoryBuffer``, NumPy values) beside the
    weights. torch >= 2.6 loads weights only, unless a class is declared
    safe. OneDL's mmengine declares these itself while it loads.
    """
    if hasattr(checkpoint, 'get_torch_safe_globals'):
        return
    # NumPy 2 renamed its core, and a file may be from either side.
    core = getattr(np, '_core', None) or np.core
    functions = [(getattr(core.multiarray, name),
                  f'numpy.{module}.multiarray.{name}')
                 for name in ('_reconstruct', 'scalar')
                 for module in ('core', '_core')]
    dtypes = [type(np.dtype(code)) for code in ('f4', 'f8', 'i8', '?')]
    torch.serialization.add_safe_globals([
        HistoryBuffer, np.ndarray, np.dtype, *dtypes, *functions,
        (_history_method, 'builtins.getattr')
    ])


def _history_method(owner: Any, name: str) -> Any:
    """What stands for ``getattr``, as which a checkpoint names methods.

    The real one would let a file reach into any object.
    """
    methods = ('min', 'max', 'mean', 'current')
    if owner is not HistoryBuffer or name not in methods:
        raise UnpicklingError(
            f'a checkpoint may not refer to {name} of {owner}')
    return getattr(owner, name)


def find_torchvision_weights() -> None:
    """Let ``torchvision://`` weights be found where there is no torchvision.

    The configs of mmdet's zoo name them, and the stacks' torch has no build
    of torchvision, of which mmengine takes the addresses alone. A loader for
    a prefix is what mmengine has a registry for. This one stands for all that
    is loaded, not for a switched detector alone, so that ``norm_cfg=None``,
    ``load_from`` and the tools find the same; and it takes the place of none
    but mmengine's own, which without torchvision can only fail.
    """
    if find_spec('torchvision') is not None:
        return
    for prefix in TORCHVISION:
        own = CheckpointLoader._get_checkpoint_loader(prefix)
        if own is checkpoint.load_from_torchvision:
            CheckpointLoader.register_scheme(
                prefix, load_from_torchvision, force=True)


def load_from_torchvision(filename: str,
                          map_location: str | None = None) -> dict:
    """Load ``torchvision://NAME`` by mmengine's own table of addresses.

    Args:
        filename (str): A name of torchvision 0.12, such as
            ``torchvision://resnet50``. The file is kept in, or found in,
            ``torch.hub``'s folder.
        map_location (str, optional): See ``torch.load``.

    Returns:
        dict: The weights.

    Raises:
        ConfigError: If the table has no such name.
    """
    urls = torchvision_urls()
    name = filename.partition('://')[2]
    if urls.get(name) is None:
        near = get_close_matches(name, filter(urls.get, urls), cutoff=.4)
        raise ConfigError(
            f'{filename}: torchvision 0.12 has no weights of this name '
            f'(near it: {", ".join(near) or "none"}), and those of later ones '
            'are found by torchvision itself, which is not installed')
    return checkpoint.load_from_http(urls[name], map_location=map_location)


def torchvision_urls() -> dict[str, str | None]:
    """The addresses of torchvision 0.12's weights, by name."""
    folder = Path(mmengine.__file__).parent / 'hub'
    return load(folder / 'torchvision_0.12.json')
