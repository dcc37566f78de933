"""Where nothing can be written, each command says so, or does without."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import path_of

ROOT = Path(__file__).parents[2]
DEMO = ROOT / 'configs/demo/retinanet_r18_fpn_frn_shapes.py'
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # <sys/prctl.h>, <capability.h>


@pytest.fixture
def read_only(environment, tmp_path):
    """read_only(name, *args): its exit status and output, in such a folder.

    As root, too, who otherwise writes where he likes.
    """
    folder = tmp_path / 'folder'
    folder.mkdir()

    def no_more_than_owner():
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)

    def run(name, *args, **env):
        folder.chmod(0o500)
        run = subprocess.run(
            [sys.executable, str(path_of(name)), *map(str, args)],
            env=environment | env, cwd=folder, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=400,
            preexec_fn=no_more_than_owner)
        folder.chmod(0o700)
        assert not any(folder.iterdir())
        assert 'Traceback' not in run.stdout
        return run.returncode, run.stdout.rstrip().splitlines()[-1]

    return run


@pytest.mark.slow  # a start of Python each
@pytest.mark.parametrize('name, args, words', [
    ('train.py', [DEMO], 'work_dir: work_dirs cannot be written'),
    ('compare_norms.py', [DEMO, '--norms', 'FRN', '--batch-sizes', 2,
                          '--gpus', 0, '--out', 'out'], '--out: '),
    ('make_shapes.py', ['shapes', '--train', 2, '--val', 2], 'shapes'),
    ('make_shapes.py', ['a/b', '--train', 2, '--val', 2], 'a/b'),
])
def test_what_has_to_be_written_there(read_only, name, args, words):
    status, last = read_only(name, *args)
    assert status == 1
    assert 'error: ' in last and words in last and 'written' in last


@pytest.mark.slow
def test_what_need_not_be_written_there(read_only, tmp_path):
    """A work folder elsewhere is enough; the kernel does without a cache."""
    status, last = read_only(
        'train.py', DEMO, '--work-dir', tmp_path / 'run', '--cfg-options',
        'train_cfg.max_epochs=1', 'model.test_cfg.score_thr=0.',
        TORCH_EXTENSIONS_DIR='.')
    assert status == 0
    assert 'coco/bbox_mAP_50' in last
