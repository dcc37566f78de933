"""Packaging of frn_mmdet."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
# What mim and mmengine look for in an installed package, in its folder .mim.
# MANIFEST.in puts the same files into the sdist, where they stand here.
MIM = {
    'configs': ('.py', '.yml', '.md'),
    'tools': ('.py', '.sh'),
    'model-index.yml': ('.yml', ),
}


def version():
    """Return the version without importing the package, which needs torch."""
    text = (ROOT / 'frn_mmdet/version.py').read_text()
    return re.search(r"^__version__ = '(.+)'", text, re.MULTILINE).group(1)


def requirements(name):
    """Return the requirements of requirements/NAME.txt, without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    lines = (line.split('#')[0].strip() for line in lines)
    return [line for line in lines if line]


def stack(name):
    """Return the requirements of a stack but for torch.

    Which build of torch fits depends on the user's GPU and CUDA, so torch is
    never installed or changed on their behalf.
    """
    return [r for r in requirements(name) if not r.startswith('torch=')]


class BuildWithTools(build_py):
    """Put configs and tools into the wheel, or links to them if editable.

    The copies are made in the build folder, never beside the sources, where
    they would grow stale and be found before the originals.
    """

    def run(self):
        """Build what is Python's, then .mim."""
        super().run()
        package = ROOT if self.editable_mode else Path(self.build_lib)
        mim = package / 'frn_mmdet' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)  # an earlier build's
        mim.mkdir(parents=True)
        if self.editable_mode:
            for name in MIM:
                source = ROOT / name
                (mim / name).symlink_to(
                    os.path.relpath(source, mim), source.is_dir())
        else:
            for source, target in self.mim_files(mim):
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(source), str(target))

    @staticmethod
    def mim_files(mim):
        """Yield each file and where it goes."""
        for name, suffixes in MIM.items():
            files = [ROOT / name, *sorted((ROOT / name).rglob('*'))]
            for path in files:
                if path.is_file() and path.suffix in suffixes:
                    yield path, mim / path.relative_to(ROOT)


setup(
    name='frn_mmdet',
    version=version(),
    description='Filter Response Normalization for MMDetection',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    author='frn_mmdet contributors',
    license='Apache-2.0',
    keywords=['object detection', 'normalization', 'FRN', 'mmdetection'],
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['frn_mmdet', 'frn_mmdet.*']),
    # Compiled on first use, against the torch that is there: see ops/build.py.
    package_data={'frn_mmdet.ops': ['*.cpp', '*.h']},
    cmdclass=dict(build_py=BuildWithTools),
    python_requires='>=3.10',
    # Two families of packages provide mmengine, mmcv and mmdet under the same
    # import names. Requiring one would break an installation of the other, so
    # the user chooses by an extra; importing without either says so.
    install_requires=[],
    extras_require={
        'onedl': stack('onedl'),
        'openmmlab': stack('openmmlab'),
        'export': requirements('export'),
        'tests': requirements('tests'),
    },
)
