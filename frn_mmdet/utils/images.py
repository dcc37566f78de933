"""A folder's images, as a config's test reads them."""

from pathlib import Path
from typing import Any

from mmcv.transforms import Compose

from ..errors import ConfigError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp')


def image_files(folder: Path, count: int) -> list[Path]:
    """The first images of ``--images``, by name.

    Raises:
        ConfigError: If there are none.
    """
    files = sorted(path for path in folder.glob('*')
                   if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ConfigError(f'--images: no images in {folder}')
    return files[:count]


def read_image(pipeline: Compose, file: Path) -> Any:
    """What a test pipeline makes of ``--images``' file.

    Raises:
        ConfigError: If it is no image.
    """
    try:
        return pipeline(dict(img_path=str(file), img_id=0))
    except Exception as error:  # whatever a decoder may raise
        raise ConfigError(
            f'--images: {file} cannot be read: {error}') from error
