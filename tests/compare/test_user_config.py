import pytest

from frn_mmdet.errors import ConfigError


@pytest.mark.parametrize('text, words', [
    ('model = dict(', ['SyntaxError']),
    ('_base_ = "no/such/base.py"', ['no/such/base.py']),
    ('custom_imports = dict(imports=["no_such_module"])',
     ['no_such_module']),
    ('1 / 0', ['ZeroDivisionError']),
    ('model = dict(type="RetinaNet")', ['train_dataloader', 'has none']),
    ('', ['model', 'has none']),
])
def test_a_config_that_cannot_be_read(compare, tmp_path, text, words):
    config = tmp_path / 'mine.py'
    config.write_text(text)
    with pytest.raises(ConfigError) as error:
        compare(config=config)
    assert '\n' not in str(error.value)
    for word in [str(config), *words]:
        assert word in str(error.value)


@pytest.mark.parametrize('config, words', [
    ('no/such.py', ['config: no file no/such.py']),
    ('.', ['config: no file .']),
    ('mmdet::retinanet/no_such.py', ['no_such.py']),
    ('nowhere::retinanet/a.py', ['nowhere']),
    ('mmdet::x', ['mmdet::x']),
])
def test_no_such_config(compare, config, words):
    with pytest.raises(ConfigError) as error:
        compare(config=config)
    for word in ['config: ', *words]:
        assert word in str(error.value)


@pytest.mark.parametrize('options, words', [
    ({'model': None}, ['model: ', 'has none']),
    ({'model.type': None}, ['model.type']),
    ({'default_scope': 'mmpretrain'}, ['default_scope: ', 'classifies']),
    ({'model.type': 'Nonsense'}, ['model.type', 'Nonsense']),
    ({'model.backbone.depth': 7}, ['cannot be built', '7']),
    ({'model.backbone': None}, ['cannot be built']),
    ({'note': float('inf')}, ['config: ', "'inf'"]),  # as mmengine writes it
    ({'val_evaluator': None}, ['val_evaluator: ', 'has none']),
    ({'val_dataloader': None}, ['val_dataloader: ', 'has none']),
    ({'val_cfg': None}, ['val_cfg: ', 'has none']),
    ({'optim_wrapper.optimizer': None}, ['config: ']),
    ({'optim_wrapper.optimizer.lr': 0}, ['optim_wrapper.optimizer.lr', '0']),
    ({'optim_wrapper.accumulative_counts': 0}, ['config: ']),
    ({'auto_scale_lr.base_batch_size': -1}, ['base_batch_size', '-1']),
    ({'auto_scale_lr': None, 'train_dataloader.batch_size': 0},
     ['batch', 'got 0']),
    ({'train_cfg.max_epochs': 'many'}, ['config: ']),
    ({'train_cfg.max_epochs': 0}, ['train_cfg', '0 steps']),
    ({'train_cfg.type.a': 1}, ['--cfg-options']),
    ({'param_scheduler.9.end': 1}, ['--cfg-options', '9']),
    ({'train_dataloader.dataset.type': 'NoData'}, ['NoData']),
    ({'train_dataloader.dataset': 3}, ['train_dataloader.dataset']),
    ({'train_dataloader.dataset.filter_cfg.min_size': 10**6},
     ['train_dataloader.dataset', 'no image']),
    ({'default_scope': 'mmengine'}, ['mmengine']),
])
def test_options_that_break_it(compare, options, words):
    with pytest.raises(ConfigError) as error:
        compare(options=options)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_options_that_a_runner_takes(compare, tmp_path):
    """No hook of one's own, and a resume that is not the config's to say."""
    comparison = compare(
        ['BN'], options={'default_hooks': None, 'resume': True})
    cfg = comparison.cell_config(comparison.asked.cells({})[0], tmp_path)
    assert cfg.default_hooks.logger.type == 'LoggerHook'
    assert cfg.resume is False
