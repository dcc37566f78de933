import json

import pytest

from frn_mmdet.compare.progress import (
    describe_end,
    describe_left,
    duration,
    fraction_done,
    seconds_left,
)


def row(cell, seconds, status='ok'):
    return dict(cell._asdict(), AP=.3, seconds=seconds, status=status)


@pytest.fixture
def comparison(compare):
    return compare(batch_sizes=[8, 2], seeds=3)  # 6 of each batch size


def first(comparison, batch):
    return next(c for c in comparison.asked.cells({}) if c.batch == batch)


def test_nothing_tells_yet(comparison):
    assert seconds_left(comparison, {}, [], 1) is None
    running = [(first(comparison, 8), 100., 0.)]
    assert seconds_left(comparison, {}, running, 1) is None
    assert describe_left(None) == ''


def test_a_cell_half_way_tells_of_all(comparison):
    running = [(first(comparison, 8), 50., .5)]
    assert seconds_left(comparison, {}, running, 1) == 12 * 100 - 50


def test_each_batch_size_takes_its_own_time(comparison):
    eight, two = first(comparison, 8), first(comparison, 2)
    results = {eight: row(eight, 10.), two: row(two, 40.)}
    assert seconds_left(comparison, results, [], 1) == 5 * 10 + 5 * 40
    assert seconds_left(comparison, results, [], 2) == (5 * 10 + 5 * 40) / 2
    # What failed at once tells nothing.
    results[eight] = row(eight, 1., 'crashed: x')
    assert seconds_left(comparison, results, [], 1) == 5 * 40 + 5 * 40


def test_lines(comparison):
    cell = first(comparison, 8)
    line = describe_end(comparison, {cell: 0}, row(cell, 61.))
    assert line == '[1/12] FRN, batch 8, LR 0.012, seed 0: AP 0.300, 61 s'
    line = describe_end(comparison, {cell: 0}, row(cell, 2., 'diverged'))
    assert line.endswith('seed 0: diverged, 2 s')
    assert describe_left(20).startswith('; about 20 s left, until ')
    assert duration(125) == '2 min'
    assert duration(26 * 3600 + 300) == '26 h 05 min'


def test_fraction_done(tmp_path):
    assert fraction_done(tmp_path, 40) == 0
    log = tmp_path / '20260101/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(map(json.dumps, [
        dict(loss=1., iter=10), {'coco/bbox_mAP': .1}])) + '\n{"lo')
    assert fraction_done(tmp_path, 40) == .25
