"""Code in a process that has loaded nothing of this package.

It is forked off one that has imported PyTorch and mmcv, which takes seconds.
"""

import multiprocessing
import os
import tempfile
from pathlib import Path

CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['mmcv.cnn', 'torch._dynamo'])


def python(code: str, ok: bool = True, **variables: str) -> str:
    """Run code, with environment variables; return all that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, 'out')
        process = CONTEXT.Process(
            target=_run, args=(code, os.environ | variables, out))
        process.start()
        process.join()
        text = out.read_text(errors='replace')
    assert (process.exitcode == 0) is ok, text
    return text


def _run(code: str, environment: dict, out: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    exec(compile(code, '<test>', 'exec'), {'__name__': '__main__'})
