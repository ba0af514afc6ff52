"""How far two clusterings agree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from densesiam_seg.clustering.agreement import (
    best_pairs,
    entropy,
    normalised_mutual_information,
)


def test_best_pairs_by_hand() -> None:
    """Greedy would take 9 and then 0; 8 + 7 is more."""
    gains = np.array([[9.0, 8.0], [7.0, 0.0]])
    assert best_pairs(gains).tolist() == [1, 0]


def test_normalised_mutual_information_by_hand() -> None:
    """The same clusters tell everything of each other, whatever their numbers; independent ones nothing."""
    assert normalised_mutual_information(np.array([[0, 5], [5, 0]])) == pytest.approx(1)
    assert normalised_mutual_information(np.array([[2, 2], [2, 2]])) == pytest.approx(0)
    # X has the shares ½ ½, Y ¾ ¼, and each place of Y's second cluster is in X's second.
    joint = np.array([[2, 0], [1, 1]])
    own, other = math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    shared = own + other - entropy(np.array([0.5, 0.25, 0.25]))
    assert normalised_mutual_information(joint) == pytest.approx(shared / math.sqrt(own * other))


def test_one_cluster_has_no_information() -> None:
    assert normalised_mutual_information(np.array([[4, 4], [0, 0]])) == 0
    assert entropy(np.array([1.0, 0.0])) == 0
