"""Confusion matrix, matching and scores against hand-worked numbers, brute force and torchmetrics."""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.classification import MulticlassJaccardIndex

from densesiam_seg.errors import InputError
from densesiam_seg.evaluation.metrics import Matching, Scores, confusion, match, score

Counts = NDArray[np.int64]


def counts_of(rows: list[list[int]]) -> Counts:
    return np.array(rows, dtype=np.int64)


def scored(rows: list[list[int]], kinds: str = "") -> Scores:
    """Scores under the own matching; `kinds` has one letter per class: t, s or -."""
    counts = counts_of(rows)
    meaning = {"t": "thing", "s": "stuff", "-": None}
    names = [f"class {n}" for n in range(len(rows))]
    return score(counts, match(counts), names, [meaning[k] for k in kinds or "-" * len(rows)])


def matrices(classes: int, clusters: int, largest: int = 50) -> st.SearchStrategy[Counts]:
    row = st.lists(st.integers(0, largest), min_size=clusters, max_size=clusters)
    return st.lists(row, min_size=classes, max_size=classes).map(counts_of)


SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5))
ANY_MATRIX = SHAPES.flatmap(lambda shape: matrices(*shape))
SQUARE = st.integers(1, 5).flatmap(lambda n: matrices(n, n))


class TestConfusion:
    def test_hand_worked(self) -> None:
        labels = np.array([[0, 0, 1], [1, 255, 1]], dtype=np.uint8)
        predictions = np.array([[2, 0, 1], [1, 1, 0]], dtype=np.int64)
        counts = confusion(labels, predictions, classes=2, clusters=3)
        assert counts.tolist() == [[1, 0, 1], [1, 2, 0]]
        assert counts.dtype == np.int64

    @pytest.mark.parametrize(("label", "prediction"), [(3, 0), (254, 0), (0, 2), (0, -1)])
    def test_out_of_range_is_refused(self, label: int, prediction: int) -> None:
        with pytest.raises(AssertionError, match="out of range"):
            confusion(np.array([255, label], np.uint8), np.array([1, prediction]), 3, 2)

    @pytest.mark.parametrize(
        ("dtype", "classes", "clusters"),
        [(np.uint8, 27, 27), (np.int32, 27, 4096), (np.uint8, 255, 256), (np.uint32, 7, 9)],
    )
    def test_any_integers_and_sizes(
        self, dtype: type[np.integer], classes: int, clusters: int
    ) -> None:
        """Rows in steps of two, against a count of pairs."""
        draw = np.random.default_rng(classes)
        label = draw.integers(0, classes, (30, 500), np.uint8)[:, ::2]
        prediction = draw.integers(0, clusters, (30, 250)).astype(dtype)
        label[5:9] = 255
        slow = np.zeros((classes, clusters), np.int64)
        kept = label != 255
        np.add.at(slow, (label[kept].astype(int), prediction[kept].astype(int)), 1)
        np.testing.assert_array_equal(confusion(label, prediction, classes, clusters), slow)

    def test_no_pixels(self) -> None:
        assert confusion(np.zeros(0, np.uint8), np.zeros(0, int), 1, 2).tolist() == [[0, 0]]


class TestMatch:
    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            # Cluster 0 prefers class 0, but class 0 gains more from cluster 1: 6 + 5 > 7 + 1.
            ([[7, 6], [5, 1]], Matching((1, 0), "hungarian")),
            ([[1, 0], [0, 9], [8, 2]], Matching((2, 1), "hungarian")),
            ([[3, 0, 4, 0], [2, 5, 4, 0]], Matching((0, 1, 0, -1), "many-to-one")),
        ],
    )
    def test_hand_worked(self, rows: list[list[int]], expected: Matching) -> None:
        assert match(counts_of(rows)) == expected

    @given(ANY_MATRIX)
    def test_optimal(self, counts: Counts) -> None:
        classes, clusters = counts.shape
        chosen = match(counts).cluster_to_class
        matched = sum(int(counts[c, k]) for k, c in enumerate(chosen) if c >= 0)
        if clusters <= classes:
            assert len(set(chosen)) == clusters and min(chosen) >= 0
            ways = itertools.permutations(range(classes), clusters)
            best = max(sum(int(counts[c, k]) for k, c in enumerate(way)) for way in ways)
        else:
            best = sum(max(int(n) for n in counts[:, k]) for k in range(clusters))
        assert matched == best

    @given(ANY_MATRIX.filter(lambda counts: bool(counts.any())), st.randoms())
    def test_cluster_numbers_do_not_matter(self, counts: Counts, random: Random) -> None:
        order = random.sample(range(counts.shape[1]), counts.shape[1])
        names, kinds = [str(n) for n in range(len(counts))], [None] * len(counts)
        matching = match(counts)
        moved = Matching(tuple(matching.cluster_to_class[k] for k in order), matching.kind)
        scores = score(counts, matching, names, kinds)
        assert score(counts[:, order], moved, names, kinds) == scores
        # Where several matchings are best, IoU may depend on which is taken; their sum cannot.
        again = score(counts[:, order], match(counts[:, order]), names, kinds)
        assert again.pixel_accuracy == scores.pixel_accuracy

    def test_merged_clusters_get_no_class(self) -> None:
        """Two of three are left, as many as classes, so that each gets one; among three they would both be class 0."""
        counts = counts_of([[5, 0, 4], [1, 0, 3]])
        assert match(counts).cluster_to_class == (0, -1, 0)
        assert match(counts, [0, 2]) == Matching((0, -1, 1), "hungarian")


class TestScore:
    def test_hand_worked(self) -> None:
        # Diagonal 5, 3, 4 of 18 pixels; unions 9, 6 and 9.
        scores = scored([[5, 1, 1], [0, 3, 1], [2, 1, 4]], "tts")
        assert scores.iou == pytest.approx((500 / 9, 50.0, 400 / 9))
        assert scores.accuracy == pytest.approx((500 / 7, 75.0, 400 / 7))
        assert scores.share == pytest.approx((700 / 18, 400 / 18, 700 / 18))
        assert scores.mean_iou == pytest.approx(50.0)
        assert scores.mean_accuracy == pytest.approx((500 / 7 + 75 + 400 / 7) / 3)
        assert scores.pixel_accuracy == pytest.approx(1200 / 18)
        assert scores.things_iou == pytest.approx((500 / 9 + 50) / 2)
        assert scores.stuff_iou == pytest.approx(400 / 9)
        assert scores.clusters_in_use == 3
        assert scores.absent == ()
        assert scores.names == ("class 0", "class 1", "class 2")

    @pytest.mark.parametrize(
        ("rows", "kinds", "expected"),
        [
            # The thing's 10 pixels predicted as stuff count in both: 10/20 and 30/40.
            ([[10, 10], [0, 30]], "ts", {"things_iou": 50, "stuff_iou": 75}),
            # An absent class is excluded though predicted.
            ([[6, 2], [0, 0]], "st", {"iou": (75, None), "mean_iou": 75, "absent": ("class 1",)}),
            ([[6, 2], [0, 0]], "st", {"accuracy": (75, None), "things_iou": None}),
            # A class without a cluster counts as zero.
            ([[4, 0], [0, 4], [1, 1]], "---", {"iou": (80, 80, 0), "mean_iou": 160 / 3}),
            # Many to one joins clusters.
            ([[3, 4, 0, 0], [0, 1, 8, 0]], "--", {"iou": (700 / 8, 800 / 9), "clusters_in_use": 3}),
        ],
    )
    def test_special_classes(
        self, rows: list[list[int]], kinds: str, expected: dict[str, Any]
    ) -> None:
        scores = scored(rows, kinds)
        for name, value in expected.items():
            numbers = value if name == "absent" else pytest.approx(value)
            assert getattr(scores, name) == numbers

    def test_unmatched_cluster_is_an_error_of_its_class(self) -> None:
        scores = score(counts_of([[5, 5]]), Matching((0, -1), "hungarian"), ["a"], [None])
        assert (scores.mean_iou, scores.pixel_accuracy) == (50.0, 50.0)

    def test_no_label_at_all_is_refused(self) -> None:
        with pytest.raises(InputError, match="no pixel has a label"):
            scored([[0, 0], [0, 0]])

    @given(SQUARE.filter(lambda counts: bool(counts.any())))
    def test_equals_torchmetrics(self, counts: Counts) -> None:
        classes = len(counts)
        cells = [
            (true, cluster)
            for true in range(classes)
            for cluster in range(classes)
            for _ in range(int(counts[true, cluster]))
        ]
        matching = match(counts)
        table = torch.tensor(matching.cluster_to_class)
        labels = torch.tensor([true for true, _ in cells] + [255])
        predictions = table[torch.tensor([cluster for _, cluster in cells] + [0])]
        # The oracle wants two classes at least; a third, unseen one changes nothing.
        oracle = MulticlassJaccardIndex(max(classes, 2), average="none", ignore_index=255)
        expected = oracle(predictions, labels).tolist()
        scores = score(counts, matching, [str(n) for n in range(classes)], [None] * classes)
        present = [n for n in range(classes) if counts[n].any()]
        for n in range(classes):
            ours = scores.iou[n]
            assert ours == pytest.approx(100 * expected[n], abs=1e-3) if n in present else not ours
        macro = float(np.mean([expected[n] for n in present]))
        assert scores.mean_iou == pytest.approx(100 * macro, abs=1e-3)
