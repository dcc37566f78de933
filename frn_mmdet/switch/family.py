"""Whose names the types in a model's config are.

``ResNet`` is another class in mmdet than in mmpretrain, and of the two only
the one that is asked for need be installed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module

from mmengine.registry import Registry

_package = ContextVar('package', default='mmdet')


@contextmanager
def types_of(package: str) -> Iterator[None]:
    """Look types up in another package's registry from here on.

    Args:
        package (str): ``mmdet``, ``mmpretrain``, or another that has its
            models in a registry of mmengine's, ``PACKAGE.registry.MODELS``.
    """
    token = _package.set(package)
    try:
        yield
    finally:
        _package.reset(token)


def models() -> Registry:
    """The registry of models in which types are looked up, mmdet's at first.

    It is imported here, since the switch is imported with the package, also
    without mmdet.
    """
    return import_module(f'{_package.get()}.registry').MODELS
