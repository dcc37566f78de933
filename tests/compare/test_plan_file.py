"""A comparison goes on with what was asked for before, and more."""

import copy
import json
import os
from pathlib import Path

import mmdet
import pytest

from frn_mmdet.compare.folder import Folder, begun_in
from frn_mmdet.compare.grid import Grid
from frn_mmdet.errors import ConfigError
from frn_mmdet.switch.norms import read_norm

STOCK = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
# Built in a moment; no checkpoint is loaded.
SMALL = {'model.backbone.depth': 18,
         'model.neck.in_channels': [64, 128, 256, 512]}


@pytest.fixture
def make(compare):
    """make(...): of a norm that is built in a moment, unless said."""
    def _plan(norms=('BN', ), batch_sizes=(2, ), **args):
        return compare(norms, batch_sizes, **args)

    return _plan


@pytest.fixture
def make_stock(make, stock_options):
    """Of mmdet's own config."""
    def _plan(*norms, config=STOCK, **args):
        return make(norms, config=config, options=stock_options | SMALL,
                    **args)

    return _plan


def begin(out, comparison):
    with Folder(out, comparison).open([]):
        pass


def go_on(out, make, *args, **options):
    """A command in a folder that is begun; its comparison."""
    comparison = make(*args, begun=begun_in(out), **options)
    Folder(out, comparison).check(1)
    return comparison


def refused(out, make, *args, words, **options):
    with pytest.raises(ConfigError) as error:
        go_on(out, make, *args, **options)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_fewer_or_others_go_on(make, tmp_path):
    """What is asked is trained, what is there is compared."""
    begin(tmp_path, make(['IN', 'BN'], [4, 2], lrs=[.012, .024]))
    fewer = go_on(tmp_path, make, ['BN'], batch_sizes=[2], seeds=1)
    assert fewer.asked == Grid(['BN'], [2], 1, [.012])
    begin(tmp_path, fewer)
    assert begun_in(tmp_path) == Grid(
        ['BN', 'IN'], [2, 4], 2, [.012, .024])
    others = go_on(tmp_path, make, ['LN'], batch_sizes=[8], seeds=3, lrs=[.1])
    assert others.asked == Grid(['LN'], [8], 3, [.1])
    begin(tmp_path, others)
    assert begun_in(tmp_path) == Grid(
        ['LN', 'BN', 'IN'], [8, 2, 4], 3, [.1, .012, .024])


def test_the_configs_own_norm_is_of_no_concern(make, tmp_path):
    """Each cell has the command line's."""
    begin(tmp_path, make())
    for options in ({'model.norm_cfg': 'GN'},
                    {'model.norm_cfg.type': 'IN', 'model.norm_cfg.eps': .1},
                    {'model.type': 'RetinaNet'}):
        go_on(tmp_path, make, options=options)


def test_the_order_of_options(make, tmp_path):
    options = {'train_cfg.max_epochs': 2, 'model.bbox_head.num_classes': 4}
    begin(tmp_path, make(options=options))
    options = dict(reversed(list(options.items())))
    go_on(tmp_path, make, options=options)


def test_a_config_by_any_of_its_paths(make, root, tmp_path, monkeypatch):
    """The path is no part of a plan, what it holds is."""
    name = 'small_batch/retinanet_r18_fpn_shapes.py'
    begin(tmp_path / 'out', make())
    (tmp_path / 'link').symlink_to(root / 'configs')
    (tmp_path / 'mine.py').write_text(
        f'_base_ = {str(root / "configs" / name)!r}')
    monkeypatch.chdir(tmp_path)
    for path in (os.path.relpath(root / 'configs' / name), f'link/{name}',
                 './mine.py'):
        go_on(tmp_path / 'out', make, config=path)


def test_mmdets_own_config_by_both_of_its_names(make_stock, tmp_path):
    folder = Path(mmdet.__file__).parent / '.mim/configs'
    begin(tmp_path, make_stock('BN'))
    go_on(tmp_path, make_stock, 'BN',
          config=folder / STOCK.partition('::')[2])


def as_earlier_versions_wrote(comparison):
    """They left the last norm in the config, and named the config's path."""
    cfg = copy.deepcopy(comparison.cfg)
    cfg.model.norm_cfg = read_norm(comparison.asked.norms[-1])
    return dict(comparison.fingerprint(), config='some/path.py',
                resolved=cfg.pretty_text)


def test_a_folder_of_an_earlier_version(make, tmp_path):
    old = as_earlier_versions_wrote(make(['IN', 'GN:num_groups=8']))
    assert 'norm_cfg=dict(num_groups=8' in old['resolved']
    (tmp_path / 'plan.json').write_text(json.dumps(dict(plan=old)))
    go_on(tmp_path, make, ['BN', 'IN', 'GN:num_groups=8'])
    go_on(tmp_path, make, ['BN'])
    refused(tmp_path, make, ['IN', 'GN:num_groups=8'],
            options={'train_cfg.max_epochs': 2},
            words=['train_cfg.max_epochs 5, here 2'])


def test_another_layout_of_the_text(make, tmp_path):
    """It is yapf's, and of no concern."""
    begin(tmp_path, make())
    path = tmp_path / 'plan.json'
    content = json.loads(path.read_text())
    text = content['plan']['resolved']
    content['plan']['resolved'] = text.replace('=', ' = ').replace(
        '(\n', '(')
    assert content['plan']['resolved'] != text
    path.write_text(json.dumps(content))
    go_on(tmp_path, make)


@pytest.mark.parametrize('args, words', [
    (dict(same_lr=True), ['same_lr False, here True']),
    (dict(gpus=1), ['gpus 0, here 1']),
    (dict(options={'train_cfg.max_epochs': 2}),
     ['train_cfg.max_epochs 5, here 2']),
    (dict(options={'model.neck.num_outs': 4}),
     ['model.neck.num_outs 2, here 4']),
    (dict(options={'new_key': 2}), ['new_key not there, here 2']),
    (dict(options={'new.a key': [1, {}]}),
     ["new.'a key'.0 not there, here 1"]),
])
def test_another_plan_is_refused(make, tmp_path, args, words):
    begin(tmp_path, make())
    refused(tmp_path, make, **args, words=['results of another plan', *words])


def test_a_norm_that_would_take_the_checkpoint(make_stock, tmp_path):
    """BN from ImageNet and GN+WS from scratch are no comparison."""
    begin(tmp_path, make_stock('BN'))
    refused(tmp_path, make_stock, 'BN', 'GN+WS', words=[
        'another plan', 'torchvision://resnet50', 'cannot start GN+WS',
        '--pretrained'])
    go_on(tmp_path, make_stock, 'BN', 'GN+WS', pretrained=True)


def test_a_norm_that_has_taken_the_checkpoint(make_stock, tmp_path):
    """BN alone goes on from scratch, since that is how it is there."""
    begin(tmp_path, make_stock('BN', 'GN+WS'))
    alone = go_on(tmp_path, make_stock, 'BN')
    assert alone.asked.norms == ['BN']
    assert 'cannot start GN+WS' in alone.describe()


def test_a_broken_plan_is_one_sentence(make, tmp_path):
    mine = make()
    good = mine.fingerprint()
    begin(tmp_path, mine)
    broken = [b'', b'{"command": [], "pl', b'\xff', b'[]', b'3', b'{}',
              b'{"plan": {}}', b'{"plan": []}']
    broken += [json.dumps(dict(plan=good | change)).encode() for change in (
        dict(norms='FRN'), dict(norms=[]), dict(norms=[3]), dict(lrs=['a']),
        dict(seeds=None), dict(lrs=3),
        dict(resolved='a = ('), dict(resolved='import a'), dict(resolved=3))]
    for content in broken:
        (tmp_path / 'plan.json').write_bytes(content)
        with pytest.raises(ConfigError, match='plan.json is broken'):
            begun_in(tmp_path)
        with pytest.raises(ConfigError, match='plan.json is broken'):
            Folder(tmp_path, mine).check(1)
