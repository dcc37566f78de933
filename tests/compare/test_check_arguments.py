import math

import pytest

from frn_mmdet.compare.check_arguments import (
    check_norms,
    check_numbers,
    check_spelling,
)
from frn_mmdet.compare.grid import Grid
from frn_mmdet.errors import ConfigError


def sentence(call):
    with pytest.raises(ConfigError) as error:
        call()
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize('one, other', [
    ('FRN', 'FRN'), ('FRN', 'FRN+TLU'), ('FRN', 'FRN:tlu=true'),
    ('BN', 'BN+ReLU'), ('FRN+ReLU', 'FRN:tlu=false'),
    ('GN', 'GN:num_groups=32'), ('FRN', 'FRN:eps=1e-6'),
    ('FRN:eps=1e-6', 'FRN:eps=0.000001'), ('BN', 'BN:momentum=0.1'),
    ('BN', 'BN:eps=1e-5'), ('IN', 'IN:affine=true'),
    ('BN', 'BN:requires_grad=true'), ('FRN', 'FRN:from_bn=10'),
    ('FRN:parts=backbone', 'FRN:parts=[backbone]'),
    ('FRN:parts=[neck,head]', 'FRN:parts=[head,neck]'),
    ('FRN', 'FRN:parts=[backbone,neck,head]'),
    ('GN:num_groups=8:eps=1e-3', 'GN:eps=1e-3:num_groups=8'),
])
def test_norms_that_mean_the_same(one, other):
    text = sentence(lambda: check_norms(['IN:eps=.1', one, other], 0))
    assert text.startswith(f'--norms: {one} and {other} mean the same')


@pytest.mark.parametrize('one, other', [
    ('FRN', 'FRN+ReLU'), ('BN', 'BN+TLU'), ('GN', 'GN:num_groups=8'),
    ('FRN:from_bn=0', 'FRN:from_bn=False'), ('FRN', 'FRN:parts=backbone'),
    ('FRN', 'FRN:eps=1e-5'), ('FRN', 'FRN:learnable_eps=true'),
    ('BN', 'BN:requires_grad=false'), ('BN', 'BRN'), ('LN', 'LFRN'),
])
def test_norms_that_differ(one, other):
    check_norms([one, other], 0)
    check_spelling(Grid([one], [2], 1, [.1]), Grid([other], [2], 1, [.1]))


@pytest.mark.parametrize('asked, begun, words', [
    (('FRN+TLU', .1), ('FRN', .1), '--norms: FRN+TLU is FRN in the folder'),
    (('GN:eps=1e-5', .1), ('GN', .1), '--norms: GN:eps=1e-5 is GN in'),
    (('FRN', .1), ('FRN', .10000001), '--lr: 0.1 is 0.10000001 in the folder'),
])
def test_what_the_folder_has_by_another_name(asked, begun, words):
    grids = [Grid([norm], [2], 1, [lr]) for norm, lr in (asked, begun)]
    assert sentence(lambda: check_spelling(*grids)).startswith(words)
    check_spelling(grids[0], grids[0])


def test_a_name_that_no_folder_can_have():
    text = sentence(lambda: check_norms([f'FRN:eps=0.{"0" * 280}1'], 0))
    assert 'too long' in text
    check_norms([f'FRN:eps=0.{"0" * 20}1'], 0)


@pytest.mark.parametrize('args, words', [
    (([2, 0], 1, []), ['--batch-sizes', '0']),
    (([-1], 1, []), ['--batch-sizes', '-1']),
    (([4, 2, 4], 1, []), ['--batch-sizes: 4 and 4']),
    (([2], 0, []), ['--seeds', '0']),
    (([2], -1, []), ['--seeds', '-1']),
    (([2], 1, [0.]), ['--lr', '0']),
    (([2], 1, [-1.]), ['--lr', '-1']),
    (([2], 1, [math.nan]), ['--lr', 'nan']),
    (([2], 1, [math.inf]), ['--lr', 'inf']),
    (([2], 1, [.1, .2, .1]), ['--lr: 0.1 and 0.1']),
    # Their folders are named after six digits.
    (([2], 1, [.1, .10000001]), ['--lr: 0.1 and 0.10000001', 'folders']),
])
def test_numbers_that_cannot_train(args, words):
    text = sentence(lambda: check_numbers(*args))
    for word in words:
        assert word in text


def test_numbers_that_can():
    check_numbers([4, 2], 1, [.1, .100001])
