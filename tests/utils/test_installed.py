import re

import pytest
from mmengine.config import Config

from frn_mmdet import config_path
from frn_mmdet.errors import ConfigError
from frn_mmdet.utils import installed

DEMO = 'demo/retinanet_r18_fpn_frn_shapes.py'


def test_a_config_extends_one_of_the_package(tmp_path):
    mine = tmp_path / 'mine.py'
    mine.write_text(f"_base_ = __import__('frn_mmdet').config_path('{DEMO}')\n"
                    "model = dict(norm_cfg='BN')\n")
    theirs = Config.fromfile(config_path(DEMO))
    cfg = Config.fromfile(mine)
    assert cfg.model.norm_cfg == 'BN' != theirs.model.norm_cfg
    cfg.model.norm_cfg = theirs.model.norm_cfg
    assert cfg.to_dict() == theirs.to_dict()


@pytest.mark.parametrize('name, folder', [
    ('demo/none.py', 'configs/demo'), ('none/none.py', 'configs'),
    ('demo', 'configs')])
def test_a_config_that_is_not_there(name, folder):
    with pytest.raises(ConfigError, match=f'^{name}: .*/{folder}$'):
        config_path(name)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package as pip leaves it, beside other packages."""
    path = tmp_path / 'frn_mmdet'
    path.mkdir()
    (tmp_path / 'tools').mkdir()  # some other package's
    monkeypatch.setattr(
        installed, '__file__', str(path / 'utils/installed.py'))
    return path


def test_an_install_has_them_in_mim(package):
    (package / '.mim/tools').mkdir(parents=True)
    (package / '.mim/model-index.yml').touch()
    assert installed.folder('tools') == package / '.mim/tools'


def test_an_install_without_them_says_so(package):
    with pytest.raises(ConfigError, match=re.escape(
            f'{package} was installed without its tools; reinstall')):
        installed.folder('tools')
