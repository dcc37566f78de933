"""The mixin in classes of a user's."""

import pytest
from mmcv.cnn import ConvModule
from mmdet.models import RetinaNet
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import nn

from frn_mmdet import norm_sites
from frn_mmdet.errors import ConfigError
from frn_mmdet.models import NormSwitch


class Own(BaseDetector):
    """A detector from the ground up, as SparseInst is."""

    def __init__(self, backbone, norm_cfg=None, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        self.backbone = MODELS.build(backbone)

    def extract_feat(self, x):
        return self.backbone(x)

    def _forward(self, x, samples=None):
        return self.extract_feat(x)

    loss = predict = _forward


class OnTop(NormSwitch, BaseDetector):
    """It builds its parts when norm_cfg has been and gone."""

    def __init__(self, backbone, norm_cfg=None):
        super().__init__(norm_cfg=norm_cfg)
        self.backbone = MODELS.build(backbone)

    extract_feat = Own.extract_feat
    _forward = loss = predict = Own._forward


class Switched(NormSwitch, Own):
    pass


class Wraps(NormSwitch, Own):
    """It only changes arguments, and builds what has no norm."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = nn.Linear(2, 2)


class OneMore(Switched):

    def __init__(self, build, **kwargs):
        super().__init__(**kwargs)
        build(self)


class Child(OneMore):
    pass


BACKBONE = dict(type='ResNet', depth=18, base_channels=4)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


@pytest.mark.parametrize('cls', [Switched, Wraps])
def test_a_complete_class_is_switched(cls):
    model = cls(backbone=BACKBONE, norm_cfg='FRN')
    assert [s.norm for s in norm_sites(model) if s.norm] == ['FRN'] * 20


def test_a_class_that_builds_its_parts_later_is_refused():
    """It would train with 20 BN and no word."""
    with pytest.raises(ConfigError, match=(
            'OnTop builds its norms after super.*__init__.*write class '
            r'SwitchedOnTop\(NormSwitch, OnTop\)')):
        OnTop(backbone=BACKBONE, norm_cfg='FRN')
    OnTop(backbone=BACKBONE)  # without norm_cfg it is as it was


def more(model):
    model.aux_head = ConvModule(3, 3, 1, norm_cfg=dict(type='BN'))


def another(model):
    model.backbone = MODELS.build(BACKBONE)


@pytest.mark.parametrize('cls', [OneMore, Child])
@pytest.mark.parametrize('build, path', [
    (more, 'aux_head.bn'), (another, 'backbone.bn1')])
def test_norms_that_are_built_later_are_refused(cls, build, path):
    with pytest.raises(ConfigError, match=f'{cls.__name__} builds {path}'):
        cls(build=build, backbone=BACKBONE, norm_cfg='FRN')
    cls(build=build, backbone=BACKBONE)


def test_those_of_other_parts_and_of_the_plan_are_not():
    value = dict(type='FRN', parts='backbone')
    model = OneMore(build=more, backbone=BACKBONE, norm_cfg=value)
    assert type(model.aux_head.bn) is nn.BatchNorm2d


@pytest.mark.parametrize('parts', ['neck', ['neck', 'head']])
def test_a_plan_that_finds_no_norm_is_an_error(parts):
    with pytest.raises(ConfigError, match=(
            'Switched has no norm over a map in neck.* that could become '
            'FRN')):
        Switched(backbone=BACKBONE, norm_cfg=dict(type='FRN', parts=parts))


def test_norms_over_tokens_are_no_norms_of_a_plan():
    swin = dict(type='SwinTransformer', embed_dims=12, depths=(1, 1, 1, 1),
                num_heads=(1, 1, 1, 1))
    with pytest.raises(ConfigError, match='no norm over a map'):
        Switched(backbone=swin, norm_cfg='GN')


def test_the_arguments_of_an_init_are_those_it_had():
    class Named(NormSwitch, RetinaNet):

        def __init__(self, backbone, **kwargs):
            """Some words."""
            super().__init__(backbone=backbone, **kwargs)

    assert Named.__init__.__doc__ == 'Some words.'
    with pytest.raises(TypeError, match='backbone'):
        Named()


def test_behind_the_class_it_would_never_be_called():
    with pytest.raises(TypeError, match='put NormSwitch in front of Own'):
        type('Behind', (Own, NormSwitch), {})


def test_an_init_that_goes_past_it_is_refused():

    class Past(NormSwitch, Own):

        def __init__(self, backbone, norm_cfg=None):
            Own.__init__(self, backbone)

    with pytest.raises(TypeError, match='Past: __init__ must call super'):
        Past(backbone=BACKBONE, norm_cfg='FRN')
