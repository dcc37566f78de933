"""A convolution that a checkpoint has in another shape is not frozen."""

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import load_state_dict

from frn_mmdet import FRN
from frn_mmdet.errors import ConfigError
from frn_mmdet.switch import frozen

BN = dict(type='BN', parts=['backbone', 'neck'])
NORMS = pytest.mark.parametrize('saved, norm', [
    (BN, 'FRN'), (BN, dict(type='BRN', parts='backbone')), (BN, BN),
    (dict(type='GN', num_groups=4), dict(type='GN', num_groups=4)),
], ids=str)


@pytest.fixture
def file(small, tmp_path):
    """file(norm, **more): weights of a backbone of images of RGB and depth."""

    def _save(norm, **more):
        path = str(tmp_path / 'four.pth')
        state = small('RetinaNet', norm, seed=1).backbone.state_dict()
        weight = state['conv1.weight']
        state['conv1.weight'] = torch.cat([weight, weight[:, :1]], 1)
        for key, value in state.items():
            if key.endswith(('running_mean', 'running_var')):
                value.uniform_(.5, 2)
        torch.save({**state, **more}, path)
        return path

    return _save


@pytest.fixture
def model_of(small):
    """model_of(norm, file, ...): a detector of RGB that starts from it."""

    def _make(norm, file, stages=1):
        return small('RetinaNet', norm, {
            'backbone.frozen_stages': stages,
            'backbone.init_cfg': dict(type='Pretrained', checkpoint=file)},
            seed=2)

    return _make


def trains(module):
    return {parameter.requires_grad for parameter in module.parameters()}


@NORMS
def test_it_trains_and_so_does_its_backbone(file, model_of, saved, norm):
    model = model_of(norm, file(saved))
    model.train()
    assert trains(model.backbone.conv1) == {False}
    model.init_weights()
    model.train()
    assert trains(model.backbone) == {True}
    # ... in a run that is resumed, too
    again = model_of(norm, file(saved))
    again.init_weights()
    load_state_dict(again, model.state_dict())
    again.train()
    assert trains(again.backbone) == {True}


@pytest.fixture
def said(request):
    """said(): what is in the log by now."""
    records = []
    logger = MMLogger.get_instance(request.node.name)
    logger.handlers[0].emit = lambda r: records.append(r.getMessage())
    return lambda: '\n'.join(records)


def test_statistics_that_do_not_train_are_said(file, model_of, said):
    """How a norm trains is not its to change."""
    model = model_of(dict(type='BRN', parts='backbone'), file(BN))
    model.init_weights()
    assert model.backbone.norm_eval
    assert 'norm_eval=True also keeps the statistics of its BRN' in said()


def test_it_is_said(file, model_of, said):
    model_of('FRN', file(BN)).init_weights()
    text = said()
    assert ('backbone.conv1 has weights of shape (8, 3, 7, 7) and the '
            'checkpoint has (8, 4, 7, 7), so it is not loaded, and '
            'backbone.frozen_stages=1 would keep it as it is: -1 now') in text
    assert "backbone (1): FRN without BN's statistics" in text
    assert 'backbone (19): FRN starts from BN' in text
    assert 'norm_eval' not in text.partition('backbone.conv1 has')[2]


def test_its_norm_does_not_start_from_another_maps_statistics(file, model_of):
    model = model_of('FRN', path := file(BN))
    model.init_weights()
    first, second = model.backbone.frn1, model.backbone.layer1[0].frn1
    state = torch.load(path)
    assert first.share == 1
    assert first.ref_mean.eq(0).all()
    assert first.ref_var.eq(1).all()
    assert torch.equal(first.weight, state['bn1.weight'])
    assert second.share == pytest.approx(1 / 11)
    assert torch.equal(second.ref_mean, state['layer1.0.bn1.running_mean'])


def test_gamma_and_beta_of_folded_statistics_go_with_them(file, model_of):
    path = file(BN, **{
        'bn1.running_mean': torch.zeros(8), 'bn1.running_var': torch.ones(8),
        'bn1.weight': torch.full((8, ), .01)})
    model = model_of('FRN', path)
    model.init_weights()
    assert model.backbone.frn1.weight.eq(1).all()


def test_by_load_from_and_in_a_part(file, model_of, tmp_path):
    state = {f'backbone.{key}': value
             for key, value in torch.load(file(BN)).items()}
    torch.save(state, tmp_path / 'detector.pth')
    for module, path in (('', tmp_path / 'detector.pth'),
                         ('backbone', file(BN))):
        model = model_of('FRN', file(BN))
        assert model.backbone.frozen_stages == 1
        load_checkpoint(model.get_submodule(module), str(path))
        model.train()
        assert trains(model.backbone) == {True}


def test_norms_that_are_not_to_train_do_not(file, model_of):
    model = model_of(dict(type='FRN', requires_grad=False), file(BN))
    model.init_weights()
    model.train()
    assert trains(model.backbone.conv1) == trains(model.backbone.layer1[0].
                                                  conv1) == {True}
    assert all(trains(norm) == {False} for norm in model.backbone.modules()
               if isinstance(norm, FRN))


def test_what_is_frozen_as_a_whole_is_not_its_to_free(file, model_of):
    """An average of weights, or a teacher."""
    path = file(BN)
    average = ExponentialMovingAverage(model_of('FRN', path)).module
    load_checkpoint(average.backbone, path)
    assert trains(average) == {False}


@pytest.mark.parametrize('stages', [-1, 1])
def test_weights_that_fit_leave_it_frozen(small, model_of, tmp_path, stages):
    path = str(tmp_path / 'three.pth')
    torch.save(small('RetinaNet', BN, seed=1).backbone.state_dict(), path)
    model = model_of('FRN', path, stages)
    model.init_weights()
    model.train()
    assert model.backbone.frozen_stages == stages
    assert trains(model.backbone.layer1) == {stages == -1}


def test_processes_that_share_gradients_have_agreed_on_them_before(
        file, model_of, monkeypatch):
    """By then DistributedDataParallel has looked at what trains."""
    model = model_of('FRN', file(BN))
    monkeypatch.setattr(frozen, 'get_world_size', lambda: 2)
    with pytest.raises(ConfigError, match='set backbone.frozen_stages=-1$'):
        model.init_weights()
