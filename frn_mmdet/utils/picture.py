"""Pictures that the tools write: ``--out FILE``."""

import argparse
from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from .whole_file import whole_file


def picture_path(text: str) -> Path:
    """Read ``--out`` for argparse: a file whose suffix is a picture's."""
    path = Path(text)
    suffixes = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().removeprefix('.') not in suffixes:
        raise argparse.ArgumentTypeError(
            f'{text} does not end in that of a picture: choose .png or .pdf, '
            f'or one of {", ".join(suffixes)}')
    if path.is_dir():
        raise argparse.ArgumentTypeError(f'{text} is a folder; give a file')
    return path


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure to a :func:`picture_path`.

    Raises:
        ConfigError: If the file cannot be written.
    """
    with whole_file(path, '--out') as file:
        figure.savefig(file, dpi=120, format=path.suffix.lower()[1:])
