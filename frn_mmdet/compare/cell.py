"""One training of a comparison."""

import re
from typing import NamedTuple


class Cell(NamedTuple):
    """One training.

    Attributes:
        norm (str): As on the command line, ``GN:num_groups=8``.
        batch (int): Images per GPU.
        lr (float): The learning rate at the reference batch.
        seed (int): Of weights and of the order of images.
    """

    norm: str
    batch: int
    lr: float
    seed: int

    @classmethod
    def of(cls, row: dict) -> 'Cell':
        """The cell that a row of results is of."""
        return cls(*(row[key] for key in cls._fields))

    @property
    def name(self) -> str:
        """Its files' name."""
        norm = re.sub(r'[^\w+.]+', '-', self.norm).strip('-')
        return f'{norm}_b{self.batch}_lr{self.lr:g}_s{self.seed}'
