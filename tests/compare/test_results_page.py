import csv
import re
import statistics

import matplotlib.image
import pytest

from frn_mmdet.compare import Cell
from frn_mmdet.compare.grid import Grid
from frn_mmdet.compare.result import COLUMNS, Column
from frn_mmdet.compare.results_page import (
    STYLES,
    Score,
    clear_winner,
    labels,
    write_report,
)

APS = {  # norm, batch: of the seeds
    ('FRN', 4): [.30, .32, .31],
    ('FRN', 2): [.30, .20, .25],
    ('BN', 4): [.20, .22, .21],
    ('BN', 2): [.24, .23, None],
}


def row(cell, ap, **more):
    values = dict.fromkeys(COLUMNS) | cell._asdict()
    status = 'diverged' if ap is None else 'ok'
    return values | dict(AP=ap, AP50=ap, status=status, seconds=1.) | more


@pytest.fixture
def report(compare, tmp_path):
    """report(results, **args): the page of some results."""

    def _report(results, **args):
        comparison = compare(**dict(seeds=3) | args)
        write_report(tmp_path, comparison, results, ['python', 'a b.py'])
        return (tmp_path / 'results.md').read_text()

    return _report


@pytest.fixture
def results(compare):
    lr, = compare().asked.lrs
    return {cell: row(cell, ap) for (norm, batch), aps in APS.items()
            for seed, ap in enumerate(aps)
            for cell in [Cell(norm, batch, lr, seed)]}


def cells_of(page, title, norm):
    """The cells of a norm in a table of the page."""
    part = re.split(r'^## ', page.partition(f'\n## {title}\n')[2],
                    flags=re.MULTILINE)[0]
    line, = [line for line in part.splitlines()
             if line.startswith(f'| {norm} ')]
    return [cell.strip() for cell in line.strip('|').split('|')][1:]


def test_mean_and_deviation(report, results):
    page = report(results)
    assert cells_of(page, 'AP', 'FRN') == ['**31.0 ± 1.0**', '25.0 ± 5.0']
    assert cells_of(page, 'AP', 'BN') == [
        '21.0 ± 1.0', '23.5 ± 0.7 (1 diverged)']
    assert '## AP75' not in page  # nobody has one
    assert '- BN, batch 2, LR 0.012, seed 2: diverged' in page
    assert "    python 'a b.py'" in page
    assert 'torch 2.' in page


def test_what_is_not_trained_yet(report, results):
    page = report({cell: r for cell, r in results.items()
                   if cell.norm == 'FRN'})
    assert cells_of(page, 'AP', 'BN') == ['-', '-']
    assert '- not trained yet: 6 of 12' in page


def test_the_learning_rate_that_was_chosen(report):
    results = {}
    for norm, batch in APS:
        for lr, ap in ((.1, .2), (.2, .3 if batch == 2 else None)):
            cell = Cell(norm, batch, lr, 0)
            results[cell] = row(cell, ap)
    page = report(results, lrs=[.1, .2])
    assert cells_of(page, 'AP', 'FRN') == ['20.0 (1 seed)', '30.0 (1 seed)']
    assert '| FRN        | 0.1 | 0.2 |' in page
    # The rate that lost is in the list of what failed, not in the table.
    assert '- FRN, batch 4, LR 0.2, seed 0: diverged' in page


def test_fewer_are_asked_for_than_are_there(report, results):
    """All is reported; a mean over fewer seeds says so."""
    lost = Cell('BN', 2, .012, 1)
    results = {cell: r for cell, r in results.items() if cell != lost}
    page = report(
        results, norms=['BN'], batch_sizes=[2], seeds=1,
        begun=Grid(['FRN', 'BN'], [4, 2], 3, [.012]))
    assert '| images/GPU | 2 ' in page
    assert cells_of(page, 'AP', 'FRN') == ['25.0 ± 5.0', '**31.0 ± 1.0**']
    assert cells_of(page, 'AP', 'BN') == [
        '24.0 (2 seeds, 1 diverged)', '21.0 ± 1.0']
    assert 'deviation of 3 seeds' in page
    assert 'not trained yet' not in page  # nobody asks for it now


def test_a_column_is_one_line(report, results, tmp_path, monkeypatch):
    """In the file of all trainings, and as a table if it has a title."""
    monkeypatch.setitem(COLUMNS, 'AP_small', Column(None, 'AP of the small'))
    monkeypatch.setitem(COLUMNS, 'host', Column(None))
    results = {cell: r | dict(host='a', AP_small=.5) if cell.norm == 'FRN'
               else r | dict(host=None, AP_small=None)
               for cell, r in results.items()}
    page = report(results)
    assert cells_of(page, 'AP of the small', 'FRN') == [
        '50.0 ± 0.0', '50.0 ± 0.0']
    assert 'host' not in page
    with (tmp_path / 'results.csv').open() as file:
        assert [(r['host'], r['AP_small']) for r in csv.DictReader(file)] == (
            [('a', '0.5')] * 6 + [('', '')] * 6)


def test_every_training_is_a_row(report, results, tmp_path):
    report(results)
    with (tmp_path / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [float(r['AP']) for r in rows if r['AP']] == [
        ap for aps in APS.values() for ap in aps if ap is not None]
    assert [r['status'] for r in rows].count('diverged') == 1


def test_short_names_where_they_are_clear():
    assert labels(['FRN', 'GN:num_groups=8', 'BN+TLU']) == {
        'FRN': 'FRN', 'GN:num_groups=8': 'GN', 'BN+TLU': 'BN+TLU'}
    two = ['FRN', 'FRN:learnable_eps=true']
    assert labels(two) == {norm: norm for norm in two}


@pytest.mark.parametrize('aps, winner', [
    (dict(a=[.3, .32], b=[.2, .22]), 'a'),
    (dict(a=[.3, .34], b=[.28, .3]), None),  # the bars overlap
    (dict(a=[.3, .32], b=[.2, .22], c=[.3, .31]), None),
    (dict(a=[.3], b=[.2, .22]), None),  # one seed tells no spread
    (dict(a=[.3, .32]), None),
    (dict(a=[.3, .32], b=[.2, .22], c=[]), 'a'),
])
def test_bold_only_beyond_the_spread(aps, winner):
    column = {norm: Score(values, []) for norm, values in aps.items()}
    assert clear_winner(column) == winner
    if winner:
        bars = {norm: (statistics.mean(v) - statistics.stdev(v),
                       statistics.mean(v) + statistics.stdev(v))
                for norm, v in aps.items() if v}
        assert all(bars[winner][0] > high for norm, (_, high) in bars.items()
                   if norm != winner)


def test_curves_are_told_apart_without_colours(report, results, tmp_path):
    assert len({marker for _, _, marker in STYLES}) == len(STYLES)
    report(results)
    one = matplotlib.image.imread(tmp_path / 'results.png')
    report({cell: r | dict(segm_AP=.1) for cell, r in results.items()})
    two = matplotlib.image.imread(tmp_path / 'results.png')
    assert two.shape[1] > one.shape[1]  # a panel for masks
