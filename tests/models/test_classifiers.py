import sys

import pytest
from mmdet.registry import MODELS

from frn_mmdet.errors import ConfigError


@pytest.mark.parametrize('name', ['ImageClassifier', 'AuxClsHead'])
def test_without_mmpretrain_the_type_says_what_to_install(monkeypatch, name):
    """Its tests are in tests/imagenet, in an environment of its own."""
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    with pytest.raises(ConfigError) as error:
        MODELS.build(dict(type=f'frn_mmdet.{name}', norm_cfg='FRN'))
    assert f'frn_mmdet.{name} needs mmpretrain' in str(error.value)
    assert 'pip install onedl-mmpretrain' in str(error.value)
