from frn_mmdet.compare import Cell
from frn_mmdet.compare.grid import Grid


def grid(norms=('FRN', 'BN'), batch_sizes=(4, 2), seeds=2, lrs=(.012, )):
    return Grid(list(norms), list(batch_sizes), seeds, list(lrs))


def rows(cells, ap):
    """Results of cells, as if trained."""
    return {cell: dict(cell._asdict(), AP=ap(cell)) for cell in cells}


def test_every_norm_batch_size_and_seed():
    three = grid(seeds=3)
    cells = three.cells({})
    assert len(set(cells)) == len(cells) == three.count == 12
    assert {c.norm for c in cells} == {'FRN', 'BN'}
    assert {c.batch for c in cells} == {4, 2}
    assert {c.seed for c in cells} == {0, 1, 2}
    assert all(cell in three for cell in cells)
    # A stop half-way leaves a whole table of fewer seeds.
    assert [c.seed for c in cells] == sorted(c.seed for c in cells)
    assert len({c.name for c in cells}) == 12


def test_seed_0_chooses_the_learning_rate():
    three = grid(seeds=3, lrs=[.1, .2, .3])
    assert {c.seed for c in three.cells({})} == {0}
    assert three.chosen_lr('FRN', 4, {}) is None
    best = {('FRN', 4): .3, ('FRN', 2): .1, ('BN', 4): .2, ('BN', 2): .1}
    # One diverged everywhere: the first rate then.
    results = rows(three.cells({}), lambda c: None if c[:2] == ('BN', 2)
                   else 1 - abs(c.lr - best[c[:2]]))
    for lr in three.chosen_lr, three.best_lr:
        assert {key: lr(*key, results) for key in best} == best
    cells = three.cells(results)
    assert len(cells) == three.count == 4 * (3 + 2)
    assert {c[:3] for c in cells if c.seed} == {
        (*key, lr) for key, lr in best.items()}
    assert three.waiting(results) == {4: 4, 2: 4}
    # As long as one is not tried, nothing is decided, but there is a best.
    del results[Cell('FRN', 4, .3, 0)]
    assert three.chosen_lr('FRN', 4, results) is None
    assert three.best_lr('FRN', 4, results) == .2


def test_a_single_learning_rate_needs_no_seed_0():
    assert grid().best_lr('FRN', 4, {}) == .012


def test_two_are_joined_in_the_order_of_the_first():
    both = grid(['BN'], [2], 1, [.1]).joined(
        grid(['IN', 'BN'], [8, 2], 3, [.2, .1]))
    assert both == grid(['BN', 'IN'], [2, 8], 3, [.1, .2])
    assert Cell('IN', 2, .1, 2) in both
    for other in (Cell('GN', 2, .1, 2), Cell('IN', 4, .1, 2),
                  Cell('IN', 2, .3, 2), Cell('IN', 2, .1, 3)):
        assert other not in both
