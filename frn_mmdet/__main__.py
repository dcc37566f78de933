"""Run a tool of frn_mmdet, from wherever it is installed.

python -m frn_mmdet TOOL [ARGUMENTS]

The arguments are the tool's own, and --help after its name lists them. Where a
config is wanted, frn_mmdet::FOLDER/NAME.py is one of those that are installed
with frn_mmdet.
"""

import ast
import os
import runpy
import sys
from pathlib import Path

from .errors import ConfigError
from .utils.installed import config_path, folder

OWN = 'frn_mmdet::'
# A tool that is now an argument of another.
RENAMED = {'check_export': ['export', '--check']}


def main(argv: list[str] | None = None) -> None:
    """Run what the first argument names with the others."""
    args = sys.argv[1:] if argv is None else argv
    try:
        tools = find_tools()
        if not args or args[0] in ('-h', '--help'):
            print(usage(tools))
            sys.exit(0 if args else 2)
        name, *words = [*RENAMED.get(args[0], args[:1]), *args[1:]]
        if name not in tools:
            raise ConfigError(
                f'{name}: frn_mmdet has no such tool; there are '
                f'{", ".join(tools)}')
        run(tools[name], [find_config(word) for word in words])
    except ConfigError as error:
        sys.exit(f'error: {error}')


def find_tools() -> dict[str, Path]:
    """Return the tools by name.

    Those of a training stand first, as in the folder ``tools`` itself.
    """
    paths = [path for path in folder('tools').rglob('*')
             if path.suffix in ('.py', '.sh')]
    return {path.stem: path for path in sorted(
        paths, key=lambda path: (len(path.parts), path))}


def usage(tools: dict[str, Path]) -> str:
    """Return what --help prints."""
    width = max(map(len, tools))
    lines = [f'  {name:{width}}  {summary(path)}'
             for name, path in tools.items()]
    return '\n'.join([
        __doc__, 'Tools:', *lines, '', f'Configs: {folder("configs")}'])


def summary(path: Path) -> str:
    """Return what a tool says of itself in its first line."""
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.sh':
        return text.splitlines()[1].strip('# ').partition(':')[0] + '.'
    return ast.get_docstring(ast.parse(text)).splitlines()[0]


def find_config(word: str) -> str:
    """Return an argument with the path of an installed config."""
    if word.startswith(OWN):
        return config_path(word.removeprefix(OWN))
    return word


def run(path: Path, args: list[str]) -> None:
    """Run a tool as if its path had been typed."""
    sys.argv[:] = [str(path), *args]
    if path.suffix == '.sh':
        os.environ.setdefault('PYTHON', sys.executable)
        os.execvp('bash', ['bash', *sys.argv])
    runpy.run_path(str(path), run_name='__main__')


if __name__ == '__main__':
    main()
