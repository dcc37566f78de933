"""A detector has every weight from its checkpoint, or it is an error."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from frn_mmdet.engine.load_detector import load_detector
from frn_mmdet.errors import ConfigError

SMALL = {
    'model.backbone.depth': 18,
    'model.backbone.init_cfg': None,
    'model.neck.in_channels': [64, 128, 256, 512],
}


def config(stock, norm_cfg=None, **options):
    cfg = stock('RetinaNet')
    cfg.model.type = 'frn_mmdet.RetinaNet'
    cfg.model.norm_cfg = norm_cfg
    cfg.merge_from_dict(SMALL | options)
    return Config(cfg.to_dict())


@pytest.fixture
def checkpoint(stock, tmp_path):
    """Of a RetinaNet as mmdet has it."""
    init_default_scope('mmdet')
    model = MODELS.build(config(stock).model)
    torch.save(model.state_dict(), tmp_path / 'bn.pth')
    return str(tmp_path / 'bn.pth')


def test_all_of_a_checkpoint_that_is_converted_fits(stock, checkpoint):
    cfg = config(stock, dict(type='FRN', parts=['backbone']))
    before = cfg.to_dict()
    model = load_detector(cfg, checkpoint)
    assert cfg.to_dict() == before and not model.training
    state = torch.load(checkpoint)
    for key in 'backbone.layer1.0.conv1.weight', 'bbox_head.retina_cls.bias':
        assert model.state_dict()[key].equal(state[key])


@pytest.mark.parametrize('norm_cfg, options, words', [
    (None, {'model.bbox_head.stacked_convs': 5}, r'missing: 4 \(bbox_head'),
    (None, {'model.bbox_head.stacked_convs': 2}, r'unexpected: 8 \(bbox_h'),
    (None, {'model.bbox_head.num_classes': 3}, 'another size: 2 .*retina_cls'),
    ('FRN', {}, r'missing: .* \(neck.lateral_convs.0.frn.weight'),
], ids=str)
def test_a_part_of_one_is_an_error(stock, checkpoint, norm_cfg, options,
                                   words):
    with pytest.raises(ConfigError, match=f'bn.pth does not fit.*{words}'):
        load_detector(config(stock, norm_cfg, **options), checkpoint)
