"""An image among others of other shapes is what it is alone."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.testing import demo_mm_inputs

from frn_mmdet.errors import ConfigError
from frn_mmdet.export.agreement import Agreement
from frn_mmdet.models.own_area import (
    Batch,
    batch_of,
    over_own_areas,
    watch_heads,
)
from frn_mmdet.switch.norms import parse_norm_cfg

SHAPES = [(3, 128, 160), (3, 96, 200), (3, 200, 96), (3, 120, 130)]

def images(shapes=SHAPES, **kwargs):
    torch.manual_seed(0)
    return demo_mm_inputs(
        len(shapes), list(shapes), num_classes=3,
        num_items=[3] * len(shapes), **kwargs)


def one(data, number):
    """The batch of one image of a batch."""
    return {key: copy.deepcopy(value[number:number + 1])
            for key, value in data.items()}


def prepared(model, data, training=False):
    """Preprocessed, in the model's precision."""
    data = model.data_preprocessor(copy.deepcopy(data), training)
    return data['inputs'].to(next(model.parameters())), data['data_samples']


@pytest.fixture
def detector(small):
    """detector(name, norm_cfg): of few channels, in float64."""

    def _detector(name, norm_cfg):
        model = small(name, norm_cfg)
        for parameter in model.parameters():  # no gamma hides its block
            if parameter.dim() == 1:
                parameter.data += .1 * torch.rand_like(parameter)
        return model.eval()

    return _detector


def maps_of(model, inputs, samples):
    """The pyramid, and what the dense head makes of it."""
    with over_own_areas(inputs, samples), torch.no_grad():
        feats = model.extract_feat(inputs)
        head = model.rpn_head if hasattr(model, 'rpn_head') else (
            model.bbox_head)
        return [*feats, *(m for maps in head(feats) for m in maps)]


NORMS = {
    'FRN': dict(type='FRN'), 'FRN in the backbone': dict(
        type='FRN', parts='backbone'),
    'FRN+WS': dict(type='FRN', ws=True),
    'GN': dict(type='GN', num_groups=4), 'IN': dict(type='IN'),
    'LN': dict(type='LN'),
}


@pytest.mark.parametrize('name, norm', [
    *(('RetinaNet', norm) for norm in NORMS),
    ('MaskRCNN', 'FRN'), ('MaskRCNN', 'FRN in the backbone'),
    ('FCOS', 'FRN'), ('FCOS', 'FRN in the backbone'), ('FCOS', 'LN'),
])
def test_its_maps_are_those_of_it_alone(detector, name, norm):
    """In training, every level and every output, border included."""
    model = detector(name, NORMS[norm] | dict(own_area=True))
    model.double().train()
    data = images()
    inputs, samples = prepared(model, data)
    assert inputs.shape[2:] == (224, 224)
    together = maps_of(model, inputs, samples)
    for number in range(len(SHAPES)):
        alone = maps_of(model, *prepared(model, one(data, number)))
        for level, (mine, own) in enumerate(zip(together, alone, strict=True)):
            height, width = own.shape[2:]
            exact = mine.dtype is torch.float64  # FCOS makes float32 of boxes
            torch.testing.assert_close(
                mine[number, :, :height, :width], own[0],
                **(dict(rtol=1e-9, atol=1e-9) if exact else {}))
            if level < 5:
                assert not mine[number, :, height:].any()
                assert not mine[number, :, :, width:].any()


def detections(sample):
    """Boxes with scores, and labels, as the comparison has them."""
    found = sample.pred_instances.numpy()
    return np.c_[found.bboxes, found.scores], found.labels


@pytest.mark.parametrize('norm', ['FRN', 'BN'])
@pytest.mark.parametrize('name', ['RetinaNet', 'MaskRCNN', 'FCOS'])
def test_its_boxes_are_those_of_it_alone(detector, name, norm):
    """By default, in test, whatever the norm."""
    model = detector(name, norm)
    test_cfg = model.test_cfg
    if 'rcnn' in test_cfg:
        test_cfg.rpn.update(nms_pre=20, max_per_img=50)  # or it takes long
    test_cfg.get('rcnn', test_cfg).update(score_thr=0.)
    data = images(with_mask=name == 'MaskRCNN')
    agreement = Agreement()
    with torch.no_grad():
        together = model.predict(*prepared(model, data))
        for number, mine in enumerate(together):
            own, = model.predict(*prepared(model, one(data, number)))
            assert mine.img_id == own.img_id
            own = detections(own)
            agreement.add(own, detections(mine), own[0][:, 4].min())
    assert agreement.detections > 50
    assert agreement.unmatched == 0
    assert agreement.score < 1e-6
    assert agreement.box < 2e-3  # of float32, some hundred pixels


@pytest.mark.parametrize('norm_cfg', [None, dict(type='FRN', own_area=False)])
def test_without_it_they_are_not(detector, norm_cfg):
    """What the other tests would not find, if padding changed nothing."""
    model = detector('RetinaNet', norm_cfg)
    data = images()
    inputs, samples = prepared(model, data)
    alone, samples_alone = prepared(model, one(data, 1))
    with torch.no_grad():
        together = model._forward(inputs, samples)[0][0][1]
        own = model._forward(alone, samples_alone)[0][0][0]
    height, width = own.shape[1:]
    off = (together[:, :height, :width] - own).abs().max() / own.abs().max()
    assert off > .01


def step(model, inputs, samples):
    """The losses of a training step, and its gradient."""
    model.zero_grad()
    loss = model.parse_losses(model.loss(inputs, samples))[0]
    loss.backward()
    return loss.detach(), torch.cat([
        p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_images_of_one_shape_are_as_without(small):
    """Bit for bit, by the same calls."""
    data = images([(3, 128, 160), (3, 120, 130)])  # both padded to the first
    results = []
    for own_area in (False, True):
        model = small('RetinaNet', dict(type='FRN', own_area=own_area))
        results.append(step(model, *prepared(model, data, training=True)))
    for with_it, without in zip(*results, strict=True):
        assert torch.equal(with_it, without)


def test_gradients_are_those_of_the_images_alone(detector):
    """Of a sum over all maps, each image's over its own area."""
    model = detector('RetinaNet', dict(type='FRN', own_area=True)).double()
    data = images()

    def gradient(*batch):
        with over_own_areas(*batch):
            feats = model.extract_feat(batch[0])
            outputs = model.bbox_head(feats)
        sum(f.square().sum() for f in feats).backward(retain_graph=True)
        del outputs

    gradient(*prepared(model, data))
    together = [p.grad.clone() for p in model.backbone.parameters()]
    model.zero_grad()
    for number in range(len(SHAPES)):
        gradient(*prepared(model, one(data, number)))
    for mine, parameter in zip(
            together, model.backbone.parameters(), strict=True):
        torch.testing.assert_close(
            mine, parameter.grad, rtol=1e-9, atol=1e-9)


def test_checkpointed_blocks_see_the_same(small):
    """What is computed again in the backward pass has the same shapes."""
    data = images()
    results = []
    for with_cp in (False, True):
        model = small('RetinaNet', dict(type='FRN', own_area=True),
                      {'backbone.with_cp': with_cp})
        results.append(step(model.train(), *prepared(model, data, True)))
    for mine, own in zip(*results, strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-4)


def test_it_ends_with_the_call(small):
    """After an error, too; and other inputs, and threads, know nothing."""
    model = small('RetinaNet', dict(type='FRN', own_area=True))
    inputs, samples = prepared(model, images())
    with pytest.raises(KeyboardInterrupt), over_own_areas(inputs, samples):
        assert batch_of(inputs) is not None
        assert batch_of(inputs.clone()) is None  # a teacher's, in the call
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(batch_of, inputs).result() is None
        raise KeyboardInterrupt
    assert batch_of(inputs) is None


def test_a_copy_is_on_its_own(detector):
    """As mmengine's EMA makes one, and as a file has a whole model."""
    model = detector('RetinaNet', 'FRN')
    data = prepared(model, images())
    with torch.no_grad():
        own = model.predict(*copy.deepcopy(data))
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            for mine, theirs in zip(
                    own, other.predict(*copy.deepcopy(data)), strict=True):
                assert torch.equal(mine.pred_instances.bboxes,
                                   theirs.pred_instances.bboxes)


@pytest.mark.parametrize('name', ['RetinaNet', 'FCOS'])
def test_its_outputs_are_those_of_it_alone(detector, name):
    """By default, in test, of ``mode='tensor'``, which calls no hooks."""
    model = detector(name, 'FRN')
    data = images()
    with torch.no_grad():
        together = model(*prepared(model, data), mode='tensor')
        for number in range(len(SHAPES)):
            alone = model(*prepared(model, one(data, number)), mode='tensor')
            for mine, own in zip(sum(map(list, together), []),
                                 sum(map(list, alone), []), strict=True):
                height, width = own.shape[2:]
                torch.testing.assert_close(
                    mine[number, :, :height, :width], own[0],
                    rtol=1e-3, atol=1e-3)


def test_a_panoptic_detector(small):
    """Its RoI head is called, and its head of stuff makes a dict."""
    model = small('PanopticFPN', dict(type='FRN', own_area=True))
    data = images(with_mask=True, with_semantic=True)
    assert step(model, *prepared(model, data, training=True))[0].isfinite()
    with torch.no_grad():
        outputs = model.eval()(*prepared(model, data), mode='tensor')
    assert len(outputs[-1]) == len(SHAPES)


@pytest.mark.parametrize('output', [
    torch.zeros(1, 5), {'masks': torch.zeros(1, 5)}, [torch.zeros(5)] * 2])
def test_a_head_that_makes_no_maps_is_refused(output):
    """By name, when the first batch of several shapes comes."""
    batch = Batch(torch.zeros(2, 3, 64, 64), {(32, 64): [0], (64, 32): [1]})
    with pytest.raises(ConfigError, match='own_area: Head takes or makes'):
        batch.join_outputs([output, output], 'Head')
    batch = Batch(torch.zeros(3, 3, 64, 64), {(32, 64): [0], (64, 32): [1, 2]})
    with pytest.raises(ConfigError, match='own_area: Head takes or makes'):
        batch.join_outputs([[output], [output] * 2], 'Head')


class OfEachImage(torch.nn.Module):
    """A head, of mmdet's CondInst say, that is told of each image."""

    def forward(self, maps, infos, weight=1):
        return [maps[0] * weight for _ in infos]


def test_a_head_that_takes_more_than_maps_is_refused():
    """It would take what is of other images for that of a group."""
    model = torch.nn.ModuleDict(dict(mask_head=OfEachImage()))
    watch_heads(model)
    samples = [DetDataSample(metainfo=dict(pad_shape=shape))
               for shape in ((32, 64), (64, 32))]
    inputs = torch.zeros(2, 3, 64, 64)
    with over_own_areas(inputs, samples):
        maps = batch_of(inputs).extract_feat(lambda x: (x, ))
        with pytest.raises(ConfigError, match='own_area: OfEachImage takes'):
            model.mask_head(maps, ['one', 'two'])
        assert len(model.mask_head([inputs], ['one', 'two'])) == 2


@pytest.mark.parametrize('name', ['BN', 'SyncBN', 'BRN'])
def test_a_norm_of_the_batch_trains_on_the_batch(name):
    with pytest.raises(ConfigError, match=f'own_area=True: {name} takes'):
        parse_norm_cfg(dict(type=name, own_area=True))


@pytest.mark.parametrize('value', [1, None, 'train', 'True'])
def test_another_value_is_refused(value):
    with pytest.raises(ConfigError, match="own_area: got .* 'test', True, F"):
        parse_norm_cfg(dict(type='FRN', own_area=value))


def test_the_names_of_mmdets_arguments(small):
    """Whoever calls by them, as mmdet's docstrings have them."""
    model = small('RetinaNet', 'FRN')
    inputs, samples = prepared(model, images())
    assert model.loss(batch_inputs=inputs, batch_data_samples=samples)
    with torch.no_grad():
        assert model.predict(batch_inputs=inputs, batch_data_samples=samples)
        assert model._forward(batch_inputs=inputs, batch_data_samples=samples)
        assert model.extract_feat(batch_inputs=inputs)
