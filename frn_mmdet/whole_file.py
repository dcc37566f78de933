"""Files that are whole or not there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import ConfigError


@contextlib.contextmanager
def whole_file(path: Path, what: str) -> Iterator[BinaryIO]:
    """Open a file that appears at ``path`` once all of it is written.

    Args:
        path (Path): Its folder is made. What stands there is replaced.
        what (str): The argument that named it, for the error.

    Yields:
        BinaryIO: To write to.

    Raises:
        ConfigError: If the file cannot be written, or not all of it.
    """
    part = path.with_name(f'{path.name}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open('wb') as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise ConfigError(
            f'{what}: {path} cannot be written: {error.strerror or error}'
        ) from error
    finally:
        if part.is_file():  # whatever else was raised meanwhile
            part.unlink()
