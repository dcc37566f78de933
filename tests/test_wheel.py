"""What is built from a clone: wheel, sdist, editable install."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from frn_mmdet import __version__

ROOT = Path(__file__).parents[1]
SOURCES = ['setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE',
           'model-index.yml', 'requirements', 'configs', 'tools', 'frn_mmdet']
NAME = f'frn_mmdet-{__version__}'
WHEEL = f'{NAME}-py3-none-any.whl'
MIM = 'frn_mmdet/.mim/'


def build(folder, *steps):
    """Run steps of setuptools' build, as pip and `python -m build` do."""
    code = 'from setuptools import build_meta as b; ' + '; '.join(steps)
    run = subprocess.run([sys.executable, '-c', code], cwd=folder, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.returncode == 0, run.stdout


def contents(wheel):
    """Each file of a wheel with what it holds, but for the sums of all."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()
                if not name.endswith('/RECORD')}


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """A copy of the sources, in which wheel and sdist were built."""
    path = tmp_path_factory.mktemp('clone')
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, path / name, ignore=lambda folder, names: {
                '__pycache__', '.mim'} & {*names})
        else:
            shutil.copy(source, path)
    # of an earlier version, and of Python
    for stray in ('build/lib/frn_mmdet/.mim/configs/gone.py',
                  'configs/demo/__pycache__/a.pyc', 'tools/notes.txt'):
        (path / stray).parent.mkdir(parents=True, exist_ok=True)
        (path / stray).touch()
    build(path, "b.build_wheel('dist')", "b.build_sdist('dist')")
    return path


def test_wheel_has_configs_and_tools(clone):
    files = contents(clone / 'dist' / WHEEL)
    there = {name.removeprefix(MIM): text for name, text in files.items()
             if name.startswith(MIM)}
    wanted = [ROOT / 'model-index.yml', *(
        path for folder in ('configs', 'tools')
        for path in (ROOT / folder).rglob('*')
        if path.is_file() and '__pycache__' not in path.parts)]
    assert there == {str(path.relative_to(ROOT)): path.read_bytes()
                     for path in wanted}
    # and nothing beside the package
    assert {name.split('/')[0] for name in files} == {
        'frn_mmdet', f'{NAME}.dist-info'}


def test_sdist_builds_the_same_wheel(clone, tmp_path):
    with tarfile.open(clone / 'dist' / f'{NAME}.tar.gz') as file:
        file.extractall(tmp_path, filter='data')
    build(tmp_path / NAME, "b.build_wheel('.')")
    assert contents(tmp_path / NAME / WHEEL) == contents(
        clone / 'dist' / WHEEL)


def test_building_leaves_no_copies_beside_the_sources(clone):
    assert not (clone / MIM).exists()


def test_an_editable_install_links(clone, tmp_path):
    copy = tmp_path / 'clone'
    shutil.copytree(clone, copy)
    for _ in range(2):  # and again over the links
        build(copy, "b.build_editable('dist')")
    for name in ('configs', 'tools', 'model-index.yml'):
        link = copy / MIM / name
        assert link.is_symlink() and not os.path.isabs(os.readlink(link))
        assert link.samefile(copy / name)


def test_model_index_names_every_metafile():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert [ROOT / name for name in index['Import']] == sorted(
        (ROOT / 'configs').glob('*/metafile.yml'))


@pytest.mark.slow
def test_a_wheel_needs_no_clone(clone, tmp_path):
    with zipfile.ZipFile(clone / 'dist' / WHEEL) as file:
        file.extractall(tmp_path / 'site')

    def run(*args):
        done = subprocess.run(
            [sys.executable, '-m', 'frn_mmdet', *args], cwd=tmp_path,
            env=os.environ | dict(PYTHONPATH=str(tmp_path / 'site'),
                                  OMP_NUM_THREADS='1'),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        return done.stdout

    config = 'frn_mmdet::demo/retinanet_r18_fpn_frn_shapes.py'
    brief = ['--cfg-options', 'train_cfg.max_epochs=1',
             'model.test_cfg.score_thr=0.']
    assert str(tmp_path / 'site') in run('--help')
    run('make_shapes', 'data/shapes', '--train', '16', '--val', '4')
    run('train', config, '--work-dir', 'wd', *brief)
    assert 'coco/bbox_mAP' in run(
        'test', config, 'wd/epoch_1.pth', '--work-dir', 'test', *brief)
    assert '| FRN' in run(
        'compare_norms', config, '--norms', 'FRN', 'BN', '--batch-sizes', '2',
        '--seeds', '1', '--out', 'compare', *brief)
    run('dist_train', config, '2', '--work-dir', 'wd2', *brief)
