"""``--cfg-options`` as mmdet has it, with its errors in one sentence."""

import argparse

from mmengine.config import DictAction


class CfgOptions(DictAction):
    """mmengine's DictAction, whose errors would leave as tracebacks."""

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
