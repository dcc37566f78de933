"""Packaging of frn_mmdet."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


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
    # Compiled on first use, against the torch that is there: see ops/cpu.py.
    package_data={'frn_mmdet.ops': ['*.cpp', '*.h']},
    python_requires='>=3.10',
    # Two families of packages provide mmengine, mmcv and mmdet under the same
    # import names. Requiring one would break an installation of the other, so
    # the user chooses by an extra; importing without either says so.
    install_requires=[],
    extras_require={
        'onedl': stack('onedl'),
        'openmmlab': stack('openmmlab'),
        'tests': requirements('tests'),
    },
)
