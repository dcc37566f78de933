"""Train a detector with several norms at several batch sizes, and compare.

The way of the data: the command line, refused by ``check_arguments`` ->
``comparison`` (what is compared, a ``grid`` of cells) -> ``cell_config`` (of
each, by ``schedule``) -> ``run`` (processes, by ``launch``, in a ``folder``)
-> ``result`` (what a training logged: the columns) -> ``results_page`` (csv,
table, plot).
"""

from .cell import Cell
from .comparison import Comparison
from .run import Runner

__all__ = ['Cell', 'Comparison', 'Runner']
