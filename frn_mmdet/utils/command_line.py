"""What the command lines share: readers of words, one sentence an error."""

import argparse
from collections.abc import Callable

from mmengine.config import DictAction

NO_DICTS = ('--cfg-options reads numbers, words, lists and tuples, no dict '
            'with several keys; write that into a config')


class CfgOptions(DictAction):
    """``--cfg-options`` as mmdet has it, whose errors would be tracebacks."""

    def __call__(self, *args, **kwargs) -> None:
        """Read KEY=VALUE pairs.

        Raises:
            argparse.ArgumentError: If there is something else among them.
        """
        try:
            super().__call__(*args, **kwargs)
        except (ValueError, AssertionError) as error:
            raise argparse.ArgumentError(
                self, f'KEY=VALUE is wanted: {error}') from error
        except RecursionError as error:
            raise argparse.ArgumentError(self, NO_DICTS) from error


def parser_of(text: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` begins with a text, line by line as it is."""
    return argparse.ArgumentParser(
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter)


def add_detector(parser: argparse.ArgumentParser) -> None:
    """Let a tool take a config, a checkpoint of it and changes to it."""
    parser.add_argument('config', metavar='CONFIG', help='the config file')
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='a checkpoint of its model')
    parser.add_argument(
        '--cfg-options', metavar='KEY=VALUE', nargs='+', action=CfgOptions,
        default={}, help='changes to the config')


def number(kind: type, low: float,
           high: float | None = None) -> Callable[[str], float]:
    """A reader of the numbers from ``low`` to ``high``, for argparse.

    Args:
        kind (type): int or float.
        low (float): The least.
        high (float, optional): The largest; None: there is none.
    """
    what = 'a whole number' if kind is int else 'a number'
    limits = f'of {low} or more' if high is None else f'from {low} to {high}'

    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        # `not in range` rather than `out of range`: nan must not pass
        if value is None or not (
                low <= value and (high is None or value <= high)):
            raise argparse.ArgumentTypeError(
                f'{text!r} is not {what} {limits}')
        return value

    return read
