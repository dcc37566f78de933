"""The user's config: what every cell starts from."""

import contextlib
import io
import traceback
from collections.abc import Iterator
from pathlib import Path

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from ..engine.check_data import check_coco_data, empty_data_explained
from ..errors import ConfigError
from .switch_model import switch_model

# Without one of these there is no training, or no AP at its end.
NEEDED = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper',
          'val_dataloader', 'val_cfg', 'val_evaluator')


def read_config(config: str, options: dict) -> Config:
    """Read the config that a comparison is of.

    Args:
        config (str): A file, or mmdet's own as ``mmdet::folder/name``.
        options (dict): Overrides.

    Returns:
        Config: Its detector takes a norm_cfg, and has None.

    Raises:
        ConfigError: If no comparison can be made of it.
    """
    with in_one_sentence(f'config: {config}'):
        if '::' in config:
            cfg = get_config(config)
        elif Path(config).is_file():
            cfg = Config.fromfile(config)
        else:
            raise ConfigError(f'config: no file {config}')
    with in_one_sentence('--cfg-options'):
        cfg.merge_from_dict(options)
    for key in NEEDED:
        if not cfg.get(key):
            raise ConfigError(
                f'{key}: {config} has none; a comparison trains, and then '
                f'evaluates, and needs {", ".join(NEEDED)}')
    if cfg.get('default_scope') == 'mmpretrain':
        raise ConfigError(
            f'default_scope: {config} is of mmpretrain, which classifies; '
            'detectors are compared, by their AP')
    if cfg.get('load_from'):
        raise ConfigError(
            f'load_from: {cfg.load_from} was trained with one norm and would '
            'start others wrong; add --cfg-options load_from=None')
    # As mmengine's Runner. Where types are classes there is none, and mmdet
    # looks up what it names itself in its own.
    init_default_scope(cfg.get('default_scope', 'mmengine') or 'mmdet')
    with in_one_sentence(f'config: {config}'):
        switch_model(cfg.model, None)
        check_coco_data(cfg, ('train', 'val'))
    return cfg


def count_images(cfg: Config) -> int:
    """Length of the training set, without those that are filtered out."""
    with in_one_sentence('train_dataloader.dataset'), empty_data_explained(), \
            contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        return len(DATASETS.build(cfg.train_dataloader.dataset))


@contextlib.contextmanager
def in_one_sentence(what: str) -> Iterator[None]:
    """Turn whatever a user's config may raise into a sentence.

    Args:
        what (str): How the sentence begins.

    Raises:
        ConfigError: From the error that was raised.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # any: a config is code
        text = ' '.join(f'{type(error).__name__}: {error}'.split())
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f'{what}: {text[:300]} ({at.filename}, line {at.lineno})'
        ) from error
