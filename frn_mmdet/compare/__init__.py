"""Train a detector with several norms at several batch sizes, and compare.

The way of the data: the command line -> ``plan`` (what is trained, refused
before it starts) -> ``config`` (each cell's, by ``schedule``) -> ``run``
(processes, by ``launch``) -> ``result`` (what a training logged) ->
``report`` (csv, table, plot).
"""

from .cell import Cell
from .plan import Plan
from .run import Runner

__all__ = ['Cell', 'Plan', 'Runner']
