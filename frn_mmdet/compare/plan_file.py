"""A folder's ``plan.json``: whether a comparison may go on with it."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError
from .comparison import Comparison
from .grid import Grid

# These are the same in all commands, and the config is.
SAME = ('same_lr', 'same_steps', 'gpus')


def read_plan(path: Path) -> dict:
    """Read the plan that a folder was begun with.

    Args:
        path (Path): Its ``plan.json``.

    Returns:
        dict: The fingerprint of the comparison that it holds.

    Raises:
        ConfigError: If it holds none.
    """
    try:
        plan = json.loads(path.read_text())['plan']
        _values(plan['resolved'])
        whole = _is_grid(grid_of(plan)) and all(key in plan for key in SAME)
    except (ValueError, TypeError, KeyError, SyntaxError, AttributeError):
        whole = False
    if not whole:
        raise ConfigError(
            f'--out: {path} is broken, so that nothing tells what the '
            'results beside it are of; give another folder')
    return plan


def grid_of(plan: dict) -> Grid:
    """What is compared, by a fingerprint."""
    return Grid(*(plan[field] for field in Grid._fields))


def difference(old: dict, new: dict, comparison: Comparison) -> str | None:
    """What keeps a comparison from going on with a folder's results.

    Norms, batch sizes, seeds and learning rates may be any.

    Args:
        old (dict): The fingerprint of what they are of.
        new (dict): That of the comparison.
        comparison (Comparison): Itself.

    Returns:
        str or None: In words; None if it may go on.
    """
    for key in SAME:
        if old[key] != new[key]:
            return f'{key} {old[key]}, here {new[key]}'
    return _config_difference(
        _values(old['resolved']), _values(new['resolved']), comparison)


def _is_grid(grid: Grid) -> bool:
    """Whether the lists hold what they should."""
    norms, batch_sizes, seeds, lrs = grid
    return all(
        isinstance(values, list) and values and all(
            isinstance(value, kind) for value in values)
        for values, kind in ((norms, str), (batch_sizes, int),
                             (lrs, (int, float)), ([seeds], int)))


def _config_difference(there: dict, here: dict,
                       comparison: Comparison) -> str | None:
    """The first key of the config whose value is another."""
    keys = [key for key in there | here if there.get(key) != here.get(key)]
    if not keys:
        return None
    key = min(keys)
    # A norm that cannot start from the checkpoint takes it from all.
    notes = comparison.notes
    note = f'; {notes[0].rstrip(".")}' if notes else ''
    return (f'{key} {there.get(key, "not there")}, here '
            f'{here.get(key, "not there")}{note}')


def _values(text: str) -> dict[str, str]:
    """The values of a config that mmengine has written, by path.

    Without the detector's norm_cfg, which is each cell's: earlier versions
    left the last norm of the list in it.
    """
    leaves = (leaf for node in ast.parse(text).body
              for leaf in _leaves(node.targets[0].id, node.value))
    return {path: value for path, value in leaves
            if not f'{path}.'.startswith('model.norm_cfg.')}


def _leaves(path: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    """Path and text of each value that holds no others."""
    if isinstance(node, ast.Call) and node.args:  # dict({'a b': 1})
        node = node.args[0]
    children = []
    if isinstance(node, ast.Call):  # dict(a=1)
        children = [(word.arg, word.value) for word in node.keywords]
    elif isinstance(node, ast.Dict):
        children = [(ast.unparse(key), value)
                    for key, value in zip(node.keys, node.values, strict=True)]
    elif isinstance(node, (ast.List, ast.Tuple)):
        children = list(enumerate(node.elts))
    for name, child in children:
        yield from _leaves(f'{path}.{name}', child)
    if not children:
        yield path, ast.unparse(node)
