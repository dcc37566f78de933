"""Which trainings a comparison has."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

from .cell import Cell


class Grid(NamedTuple):
    """Every norm at every batch size, with some seeds and learning rates.

    Attributes:
        norms (list[str]): As on the command line.
        batch_sizes (list[int]): Images per GPU.
        seeds (int): How many, from 0.
        lrs (list[float]): Peak learning rates at the reference batch. Of
            several, seed 0 chooses the best of each norm and batch size, and
            the other seeds train at that one.
    """

    norms: list[str]
    batch_sizes: list[int]
    seeds: int
    lrs: list[float]

    def joined(self, other: 'Grid') -> 'Grid':
        """All of both, in the order of this one first."""
        lists = (list(dict.fromkeys((*mine, *others))) for mine, others in (
            (self.norms, other.norms), (self.batch_sizes, other.batch_sizes),
            (self.lrs, other.lrs)))
        norms, batch_sizes, lrs = lists
        return Grid(norms, batch_sizes, max(self.seeds, other.seeds), lrs)

    def __contains__(self, cell: Cell) -> bool:
        """Whether a training may be one of these."""
        return (cell.norm in self.norms and cell.batch in self.batch_sizes
                and cell.lr in self.lrs and cell.seed < self.seeds)

    @property
    def count(self) -> int:
        """How many trainings there will be."""
        return len(self.batch_sizes) * self._count_of_batch

    def cells(self, results: Mapping[Cell, dict]) -> list[Cell]:
        """What is to be trained, in order, done or not.

        Args:
            results (dict): The AP of each cell that was trained, as far as
                known: with several learning rates, seed 0 decides at which
                the other seeds train.

        Returns:
            list[Cell]: Cells whose learning rate is decided.
        """
        grid = list(itertools.product(self.norms, self.batch_sizes))
        first = [Cell(norm, batch, lr, 0)
                 for norm, batch in grid for lr in self.lrs]
        others = [
            Cell(norm, batch, lr, seed)
            for seed in range(1, self.seeds) for norm, batch in grid
            if (lr := self.chosen_lr(norm, batch, results)) is not None
        ]
        return first + others

    def waiting(self, results: Mapping[Cell, dict]) -> dict[int, int]:
        """How many trainings of each batch size have no result yet."""
        done = [cell.batch for cell in self.cells(results) if cell in results]
        return {batch: self._count_of_batch - done.count(batch)
                for batch in self.batch_sizes}

    def chosen_lr(self, norm: str, batch: int,
                  results: Mapping[Cell, dict]) -> float | None:
        """The learning rate at which seed 0 did best; None if not known."""
        if len(self.lrs) > 1 and any(
                Cell(norm, batch, lr, 0) not in results for lr in self.lrs):
            return None
        return self.best_lr(norm, batch, results)

    def best_lr(self, norm: str, batch: int,
                results: Mapping[Cell, dict]) -> float | None:
        """The best of those that were tried so far; None if none was."""
        if len(self.lrs) == 1:
            return self.lrs[0]
        aps = {lr: results[cell]['AP'] for lr in self.lrs
               if (cell := Cell(norm, batch, lr, 0)) in results}
        # A training that diverged has none. Of equals the first.
        return max(aps, default=None,
                   key=lambda lr: -1 if aps[lr] is None else aps[lr])

    @property
    def _count_of_batch(self) -> int:
        """How many trainings each batch size has."""
        return len(self.norms) * (len(self.lrs) + self.seeds - 1)
