"""The configs and tools of this package, in an install and in a clone."""

from pathlib import Path

from ..errors import ConfigError


def folder(name: str) -> Path:
    """Return where ``configs`` or ``tools`` is.

    An install has both in ``frn_mmdet/.mim``, where mmdet has its own and mim
    looks for them: copies if it is a wheel's, links if it is editable. A
    clone that is not installed has them beside the package.

    Raises:
        ConfigError: If they are in neither place.
    """
    package = Path(__file__).parents[1]
    for place in (package / '.mim', package.parent):
        # Beside an installed package other packages' folders may stand.
        if (place / name).is_dir() and (place / 'model-index.yml').is_file():
            return place / name
    raise ConfigError(
        f'{package} was installed without its {name}; reinstall frn_mmdet '
        'from its wheel or a clone')


def config_path(name: str) -> str:
    """Return the file of one of this package's configs.

    In a config of one's own, where mmengine evaluates ``_base_`` before
    there is any import::

        _base_ = __import__('frn_mmdet').config_path('frn/NAME.py')

    Args:
        name (str): The path below ``configs``.

    Raises:
        ConfigError: If there is no such config.
    """
    configs = folder('configs')
    path = configs / name
    if not path.is_file():
        near = path.parent if path.parent.is_dir() else configs
        raise ConfigError(f'{name}: frn_mmdet has no such config; see {near}')
    return str(path)
