"""Scores of an unsupervised segmentation: confusion matrix, matching, mean IoU.

N classes (annotated), K clusters (learned). Every number rests on one confusion matrix
(N K, int64) over the whole set; matrices of parts of a set add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.clustering.agreement import best_pairs
from densesiam_seg.datasets.declaration import IGNORE
from densesiam_seg.errors import InputError

Counts = NDArray[np.int64]

_BLOCK = 1 << 16
"""Pixels counted at once, which stay in the processor's cache."""


@dataclass(frozen=True)
class Matching:
    """The class of each cluster (K entries), -1 where it has none."""

    cluster_to_class: tuple[int, ...]
    kind: Literal["hungarian", "many-to-one", "identity"]


@dataclass(frozen=True)
class Scores:
    """Scores in percent, 0 to 100.

    A class is absent when no pixel is labelled with it: its `iou` and `accuracy` are None and no
    mean counts it, even if some cluster was matched to it; pixels predicted as an absent class
    remain errors of their true classes. A class that no cluster was matched to has IoU 0 and
    counts. `things_iou` and `stuff_iou` are means over the classes of that kind, taken from the
    full matrix, and None where the kind has no present class. `share` is each class's part of the
    labelled pixels, `clusters_in_use` the number of clusters with at least one of them.
    """

    mean_iou: float
    mean_accuracy: float
    pixel_accuracy: float
    things_iou: float | None
    stuff_iou: float | None
    names: tuple[str, ...]
    iou: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    share: tuple[float, ...]
    clusters_in_use: int

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes that no mean counts."""
        return tuple(name for name, iou in zip(self.names, self.iou, strict=True) if iou is None)


def confusion(
    labels: NDArray[Any], predictions: NDArray[Any], classes: int, clusters: int
) -> Counts:
    """Pixels of each class in each cluster (N K), from integer arrays of one shape; pixels labelled 255 are left out.

    Other labels must be in 0..N-1 and their predictions in 0..K-1, else the caller has made a mistake.
    """
    assert labels.shape == predictions.shape, (labels.shape, predictions.shape)
    counts = _padded_counts(labels, predictions, classes, clusters)
    assert counts[classes].sum() == np.count_nonzero(labels == IGNORE), "label out of range"
    assert not counts[:classes, clusters].any(), "prediction out of range"
    return np.ascontiguousarray(counts[:classes, :clusters])


def _padded_counts(
    labels: NDArray[Any], predictions: NDArray[Any], classes: int, clusters: int
) -> Counts:
    """Pixels of each class in each cluster (N + 1, K + 1); the last row and column take whatever is none of them."""
    rows, columns = _unsigned(labels), _unsigned(predictions)
    size = (classes + 1) * (clusters + 1)
    counts = np.zeros(size, np.int64)
    narrow = np.uint16 if size <= 1 << 16 else np.uint32
    # The least of two arrays is ten times faster than that of an array and a number.
    last_row, last_column = _filled(rows.dtype, classes), _filled(columns.dtype, clusters)
    for start in range(0, rows.size, _BLOCK):
        row, column = rows[start : start + _BLOCK], columns[start : start + _BLOCK]
        cells = np.minimum(row, last_row[: row.size]).astype(narrow)
        cells *= narrow(clusters + 1)
        column = np.minimum(column, last_column[: row.size])
        np.add(cells, column, out=cells, casting="unsafe")
        counts += np.bincount(cells, minlength=size)
    return counts.reshape(classes + 1, clusters + 1)


def _unsigned(values: NDArray[Any]) -> NDArray[Any]:
    """Integers in one row; those below 0 become very large ones."""
    row = values.reshape(-1)
    return row.view(row.dtype.str.replace("i", "u"))


def _filled(dtype: np.dtype[Any], value: int) -> NDArray[Any]:
    """A block of `value`, or of the largest number where that is less."""
    return np.full(_BLOCK, min(value, np.iinfo(dtype).max), dtype)


def match(counts: Counts) -> Matching:
    """The matching of clusters with classes for a confusion matrix (N K).

    K ≤ N: one to one with the most matched pixels (Hungarian assignment), every cluster with a
    class. K > N: each cluster with the class of most of its pixels, the lower id where equal, and
    an empty cluster with none.
    """
    classes, clusters = counts.shape
    if clusters > classes:
        best = np.where(counts.any(axis=0), counts.argmax(axis=0), -1)
        return Matching(tuple(best.tolist()), "many-to-one")
    return Matching(tuple(best_pairs(counts.T).tolist()), "hungarian")


def score(
    counts: Counts, matching: Matching, names: Sequence[str], kinds: Sequence[str | None]
) -> Scores:
    """Scores of a confusion matrix (N K) under a matching; `kinds` are `thing`, `stuff` or None.

    IoU is matched / (labelled + predicted - matched) pixels of a class, accuracy matched /
    labelled. Raises `InputError` when no pixel is labelled, since nothing can be scored then.
    """
    classes, clusters = counts.shape
    assert len(names) == len(kinds) == classes, (len(names), len(kinds), classes)
    assert len(matching.cluster_to_class) == clusters, (len(matching.cluster_to_class), clusters)
    labelled = counts.sum(axis=1)
    total = labelled.sum()
    if not total:
        raise InputError(
            "no pixel has a label, all are ignored; check the split, the labels and ignored values"
        )
    predicted, matched = _per_class(counts, matching)
    present = labelled > 0
    union = np.where(present, labelled + predicted - matched, 1)
    iou = 100.0 * matched / union
    accuracy = 100.0 * matched / np.where(present, labelled, 1)
    things = present & np.array([kind == "thing" for kind in kinds])
    stuff = present & np.array([kind == "stuff" for kind in kinds])
    return Scores(
        mean_iou=float(iou[present].mean()),
        mean_accuracy=float(accuracy[present].mean()),
        pixel_accuracy=float(100.0 * matched.sum() / total),
        things_iou=float(iou[things].mean()) if things.any() else None,
        stuff_iou=float(iou[stuff].mean()) if stuff.any() else None,
        names=tuple(names),
        iou=_or_none(iou, present),
        accuracy=_or_none(accuracy, present),
        share=tuple((100.0 * labelled / total).tolist()),
        clusters_in_use=int(counts.any(axis=0).sum()),
    )


def _per_class(counts: Counts, matching: Matching) -> tuple[Counts, Counts]:
    """Pixels predicted as each class (N), and those of them that are labelled so (N)."""
    predicted = np.zeros(len(counts), dtype=np.int64)
    matched = np.zeros(len(counts), dtype=np.int64)
    for cluster, label in enumerate(matching.cluster_to_class):
        if label >= 0:
            predicted[label] += counts[:, cluster].sum()
            matched[label] += counts[label, cluster]
    return predicted, matched


def _or_none(values: NDArray[np.float64], present: NDArray[np.bool_]) -> tuple[float | None, ...]:
    pairs = zip(values.tolist(), present.tolist(), strict=True)
    return tuple(value if there else None for value, there in pairs)
