"""Files and folders that are whole or not there."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import ConfigError


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


def is_free(folder: Path) -> bool:
    """Whether a folder can be made at this path, or is there and empty."""
    return not folder.exists() or (
        folder.is_dir() and not any(folder.iterdir()))


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Make a folder that appears at ``out`` once all of it is written.

    Yields:
        Path: What to fill, beside ``out``, so that the last step is a rename.
    """
    beside = out.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
            prefix=f'{out.name}.part-', dir=beside) as part:
        root = Path(part, 'whole')
        root.mkdir()
        yield root
        root.rename(out)
