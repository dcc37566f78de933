"""The scripts of this repository, by name, wherever their folder is."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def path_of(name: str) -> Path:
    """The one file of this name in ``tools`` or ``.dev_scripts``."""
    path, = (path for folder in ('tools', '.dev_scripts')
             for path in (ROOT / folder).rglob(name))
    return path


def load(name: str) -> ModuleType:
    """A Python script as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, path_of(f'{name}.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
