"""Detections are compared as a user would: pair by pair."""

import numpy as np
import pytest

from frn_mmdet.export.agreement import Agreement, lowest_kept

DETS = np.array([[0., 0, 10, 10, 0.9], [20, 20, 40, 40, 0.5],
                 [20, 20, 40, 41, 0.5], [5, 5, 9, 9, 0.2]])
LABELS = np.array([0, 1, 1, 2])


def compare(dets, labels, lowest=0.05):
    found = Agreement()
    found.add((DETS, LABELS), (dets, labels), lowest)
    return found


@pytest.mark.parametrize('order', [[0, 1, 2, 3], [0, 2, 1, 3]])
def test_equal_scores_come_in_any_order(order):
    found = compare(DETS[order], LABELS[order])
    assert found == Agreement(images=1, detections=4)


def test_differences_within_the_tolerances_are_reported():
    dets = DETS.copy()
    dets[0, 4] -= 5e-4
    dets[3, 2] += 0.05
    found = compare(dets, LABELS)
    assert found.unmatched == 0
    assert found.score == pytest.approx(5e-4)
    assert found.box == pytest.approx(0.05)


@pytest.mark.parametrize('row, column, by', [(0, 4, 2e-3), (3, 1, 0.2)])
def test_a_pair_that_differs_more_is_unmatched_twice(row, column, by):
    dets = DETS.copy()
    dets[row, column] += by
    assert compare(dets, LABELS).unmatched == 2


def test_another_label_is_another_detection():
    assert compare(DETS, np.array([0, 1, 1, 3])).unmatched == 2


def test_one_detection_stands_for_one():
    twice = DETS[[0, 1, 1, 3]]
    twice[2, 3] = DETS[2, 3] + 1
    assert compare(twice, LABELS).unmatched == 2
    assert compare(DETS[:0], LABELS[:0]).unmatched == 4
    found = Agreement()
    found.add((DETS[:0], LABELS[:0]), (DETS, LABELS), 0.05)
    assert found.unmatched == 4


def test_which_of_the_worst_is_kept_does_not_count():
    assert compare(DETS[:3], LABELS[:3], lowest=0.2).unmatched == 0
    assert compare(DETS[:3], LABELS[:3], lowest=0.19).unmatched == 1


def test_the_lowest_is_the_threshold_or_the_worst_at_the_limit():
    assert lowest_kept(DETS[:, 4], 0.05, limit=100) == 0.05
    assert lowest_kept(DETS[:, 4], 0.05, limit=4) == 0.2
    assert lowest_kept(DETS[:0, 4], 0.05, limit=4) == 0.05
