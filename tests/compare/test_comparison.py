import math

import pytest
from mmdet.registry import MODELS

from frn_mmdet.compare import Cell
from frn_mmdet.compare.grid import Grid
from frn_mmdet.errors import ConfigError
from frn_mmdet.switch.norms import NORMS

STOCK = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'


def test_images_are_held_and_the_learning_rate_grows(compare):
    comparison = compare(batch_sizes=[16, 4, 1])
    lr = comparison.cfg.optim_wrapper.optimizer.lr
    assert comparison.reference == 16  # auto_scale_lr.base_batch_size
    for batch in (16, 4, 1):
        assert comparison.images(batch) == 5 * 16
        assert comparison.steps(batch) == 5 * 16 // batch
        assert comparison.lr(Cell('FRN', batch, lr, 0)) == lr * batch / 16


def test_steps_are_rounded_up_as_the_loader_does(compare):
    assert compare(batch_sizes=[3]).steps(3) == 5 * 6
    # Two GPUs have 8 images each.
    assert compare(batch_sizes=[3], gpus=2).steps(3) == 5 * 3


def test_both_can_be_held_otherwise(compare, tmp_path):
    comparison = compare(same_lr=True, same_steps=True)
    for batch in (4, 2):
        assert comparison.steps(batch) == 5  # of the reference: 16 images each
        assert comparison.images(batch) == 5 * batch
        cell = Cell('FRN', batch, .01, 0)
        assert comparison.lr(cell) == .01
        cfg = comparison.cell_config(cell, tmp_path)
        assert cfg.train_cfg.max_iters == 5
        assert cfg.param_scheduler[-1].end == 5
        assert cfg.optim_wrapper.optimizer.lr == pytest.approx(.01)


def test_accumulated_gradients_are_part_of_the_batch(compare):
    comparison = compare(
        batch_sizes=[2, 1],
        options={'optim_wrapper.accumulative_counts': 4})
    assert comparison.lr(Cell('FRN', 2, .8, 0)) == pytest.approx(.8 * 8 / 16)


def test_the_config_of_a_cell(compare, tmp_path):
    comparison = compare(['FRN', 'GN:num_groups=8'], [2, 1])
    before = comparison.cfg.pretty_text
    cfg = comparison.cell_config(Cell('GN:num_groups=8', 2, .08, 1), tmp_path)
    assert comparison.cfg.pretty_text == before
    assert cfg.model.norm_cfg == dict(type='GN', num_groups=8)
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(.01)
    assert cfg.randomness.seed == 1
    assert cfg.work_dir == str(tmp_path)
    assert cfg.default_hooks.checkpoint.max_keep_ckpts == 1
    assert cfg.default_hooks.logger.interval == 2  # of 40 steps
    assert [h.type for h in cfg.custom_hooks] == ['CheckInvalidLossHook']
    assert 'LocalVisBackend' in [b.type for b in cfg.visualizer.vis_backends]


def test_a_stock_config(compare, stock_options, tmp_path):
    """From scratch for all, so that BN has no start that GN+WS has not."""
    comparison = compare(['BN', 'GN+WS'], [8, 2], config=STOCK,
                         options=stock_options)
    assert comparison.reference == 16
    assert 'torchvision://resnet50 cannot start GN+WS' in comparison.describe()
    cfg = comparison.cell_config(Cell('BN', 2, .02, 0), tmp_path)
    assert cfg.model.type == 'frn_mmdet.FasterRCNN'
    assert cfg.model.backbone.init_cfg is None
    assert cfg.model.backbone.frozen_stages == -1
    assert not cfg.model.backbone.norm_eval
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(.0025)
    # Warm-up: 500 steps of 16 images.
    assert cfg.param_scheduler[0].end == 4000
    assert cfg.param_scheduler[1].milestones == [8, 11]
    MODELS.build(cfg.model)


def test_a_checkpoint_that_fits_may_stay(compare, stock_options, tmp_path):
    comparison = compare(['BN', 'GN+WS'], [2], config=STOCK, pretrained=True,
                         options=stock_options)
    cfg = comparison.cell_config(Cell('BN', 2, .02, 0), tmp_path)
    assert cfg.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'
    assert cfg.model.backbone.frozen_stages == 1
    for norms in (['BN'], [*(NORMS.keys() - {'SyncBN'}), 'FRN:from_bn=False']):
        able = compare(norms, [2], config=STOCK, options=stock_options)
        assert not able.notes
        assert able.cfg.model.backbone.init_cfg is not None


def test_a_part_without_the_norm_starts_from_scratch_too(
        compare, stock_options):
    """An untrained backbone that stays mmdet's must not stay frozen."""
    comparison = compare(['GN+WS', 'GN+WS:parts=neck'], [2], config=STOCK,
                         options=stock_options)
    assert comparison.cfg.model.backbone.init_cfg is None
    assert comparison.cfg.model.backbone.frozen_stages == -1


def test_the_plan_is_told(compare):
    text = compare(lrs=[.01, .02], seeds=3).describe()
    assert '2 norms x 2 batch sizes' in text
    assert '= 16 trainings' in text
    assert 'FRN: 23 norms, 17 TLU' in text
    assert 'BN: 27 norms, 0 TLU' in text
    assert '| 2          | CPU  | 40    | 80     | 0.00125, 0.0025 |' in text


def test_what_was_asked_for_before_is_compared_and_not_trained(compare):
    begun = Grid(['IN', 'BN'], [8, 2], 3, [.5, .012])
    comparison = compare(['BN'], [2, 4], 1, begun=begun)
    assert comparison.asked == Grid(['BN'], [2, 4], 1, [.012])
    assert comparison.whole == Grid(['BN', 'IN'], [2, 4, 8], 3, [.012, .5])
    text = comparison.describe()
    assert '= 2 trainings' in text and 'IN:' not in text
    assert 'earlier commands' in text


@pytest.mark.parametrize('args, words', [
    (dict(norms=['XN']), ['XN', 'choose one of FRN, BN']),
    (dict(norms=['FRN+GELU']), ["'GELU'", 'TLU, ReLU']),
    (dict(norms=['GN:8']), ["'8'", 'GN:num_groups=8']),
    (dict(norms=['GN:num_groups=7']), ['num_groups', 'divides']),
    (dict(norms=['FRN', 'FRN']), ['--norms: FRN and FRN']),
    (dict(norms=['SyncBN']), ['SyncBN', '2 GPUs']),
    (dict(batch_sizes=[2, 0]), ['--batch-sizes', '0']),
    (dict(batch_sizes=[2, 2]), ['--batch-sizes: 2 and 2']),
    (dict(seeds=0), ['--seeds', '0']),
    (dict(lrs=[0.]), ['--lr', '0']),
    (dict(lrs=[math.nan]), ['--lr', 'nan']),
    (dict(config='no/such.py'), ['config', 'no/such.py']),
    (dict(options={'load_from': 'a.pth'}), ['load_from', 'a.pth']),
    (dict(options={'train_dataloader.dataset.data_root': '/no/'}),
     ['train_dataloader.dataset.data_root', '/no']),
    (dict(options={'model.type': 'mmdet.SoftTeacher'}),
     ['model.type', 'mmdet.SoftTeacher']),
])
def test_refused_before_it_starts(compare, args, words):
    with pytest.raises(ConfigError) as error:
        compare(**args)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)
