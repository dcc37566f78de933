"""The comparison trains the class that the user wrote."""

import pytest
from mmdet.models import RetinaNet, SemiBaseDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT
from mmengine.registry import Registry, init_default_scope

import frn_mmdet.models
from frn_mmdet.compare.switch_model import switch_model
from frn_mmdet.errors import ConfigError
from frn_mmdet.models import NormSwitch

MINE = Registry('mine', parent=ROOT, scope='mine')


def theirs():
    """A user's class by the name of mmdet's."""
    return type('RetinaNet', (RetinaNet, ), dict(__module__='myproj.nets'))


MINE.register_module(module=theirs())
MINE.register_module(
    name='Switched',
    module=type('RetinaNet', (NormSwitch, RetinaNet), {}))
MINE.register_module(name='Alias', module=RetinaNet)


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')
    yield
    init_default_scope('mmdet')


def switched(type_, **more):
    model = dict(type=type_, **more)
    switch_model(model, dict(type='FRN'))
    assert model['norm_cfg'] == dict(type='FRN')
    return model['type']


@pytest.mark.parametrize('type_', [
    'RetinaNet', 'mmdet.RetinaNet', 'frn_mmdet.RetinaNet', RetinaNet,
    'mmdet.models.RetinaNet', 'mmdet.models.detectors.retinanet.RetinaNet',
    'mine.Alias'])
def test_mmdets_own(type_):
    assert switched(type_) == 'frn_mmdet.RetinaNet'


@pytest.mark.parametrize('type_', [
    'mine.Switched', MINE.get('Switched'), frn_mmdet.models.RetinaNet])
def test_one_that_takes_norm_cfg_stays(type_):
    assert switched(type_) is type_


def refused(type_, *words, **more):
    with pytest.raises(ConfigError) as error:
        switched(type_, **more)
    assert '\n' not in str(error.value)
    for word in ('model.type', *words):
        assert word in str(error.value)


@pytest.mark.parametrize('type_', ['mine.RetinaNet', MINE.get('RetinaNet')])
def test_another_class_of_the_same_name(type_):
    refused(type_, 'myproj.nets.RetinaNet', 'three lines')


def test_the_scope_is_the_configs():
    refused('RetinaNet', 'myproj.nets.RetinaNet', _scope_='mine')
    init_default_scope('mine')
    refused('RetinaNet', 'myproj.nets.RetinaNet')
    assert switched('mmdet.RetinaNet') == 'frn_mmdet.RetinaNet'


def test_one_registered_over_mmdets(monkeypatch):
    """As custom_imports of a file with ``register_module(force=True)``."""
    monkeypatch.setitem(MODELS.module_dict, 'RetinaNet', theirs())
    refused('RetinaNet', 'myproj.nets.RetinaNet', 'three lines')


@pytest.mark.parametrize('type_', [
    'Nonsense', 'no.such.Net', 'frn_mmdet.Nonsense', None, 3,
    'frn_mmdet.SoftTeacher'])
def test_what_is_no_class(type_):
    refused(type_, str(type_), 'custom_imports')


@pytest.mark.parametrize('type_', ['SoftTeacher', SemiBaseDetector])
def test_one_of_mmdets_without_a_backbone(type_):
    refused(type_, 'has no norm_cfg')


def test_a_class_of_a_config_in_pure_python(tmp_path):
    """Written down as it was: a file cannot hold a class."""
    path = tmp_path / 'config.py'
    path.write_text('from frn_mmdet.models import RetinaNet\n'
                    'model = dict(type=RetinaNet)\n')
    cfg = Config.fromfile(path)
    switch_model(cfg.model, None)
    cfg.dump(path)
    again = MODELS.get(Config.fromfile(path).model.type)
    assert again is frn_mmdet.models.RetinaNet
