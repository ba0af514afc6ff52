"""Scores of an unsupervised segmentation: confusion matrix, matching, mean IoU.

N classes (annotated), K clusters (learned). Every number rests on one confusion matrix (N K, int64) over the whole
set; matrices of parts of a set add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.clustering.agreement import best_pairs
from densesiam_seg.datasets.declaration import IGNORE
from densesiam_seg.errors import InputError

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Matching:
    """The class of each cluster (K entries), -1 where it has none."""

    cluster_to_class: tuple[int, ...]
    kind: Literal["hungarian", "many-to-one", "identity"]


@dataclass(frozen=True)
class Scores:
    """Scores in percent, 0 to 100.

    A class is absent when no pixel is labelled with it: its `iou` and `accuracy` are None and no mean counts it, even
    if some cluster was matched to it; pixels predicted as an absent class remain errors of their true classes. A class
    that no cluster was matched to has IoU 0 and counts. `things_iou` and `stuff_iou` are means over the classes of that
    kind, taken from the full matrix, and None where the kind has no present class. `share` is each class's part of the
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
    labels: NDArray[np.uint8], predictions: NDArray[np.integer], classes: int, clusters: int
) -> Counts:
    """Pixels of each class in each cluster (N K), from arrays of one shape; pixels labelled 255 are left out.

    Other labels must be in 0..N-1 and all predictions in 0..K-1, else the caller has made a mistake.
    """
    assert labels.dtype == np.uint8 and labels.shape == predictions.shape, (labels, predictions)
    assert predictions.min(initial=0) >= 0, "prediction out of range"
    assert predictions.max(initial=0) < clusters, "prediction out of range"
    # Every value of a label has a row, so that no pixel need be sorted out before.
    cells = labels.ravel() * np.intp(clusters)
    cells += predictions.ravel()
    counts = np.bincount(cells, minlength=256 * clusters).reshape(256, clusters)
    assert not counts[classes:IGNORE].any(), "label out of range"
    return counts[:classes]


def match(counts: Counts, left: Sequence[int] | None = None) -> Matching:
    """The matching of clusters with classes for a confusion matrix (N K).

    Where only the clusters in `left` are left of K, as others were merged into them, those alone get classes.

    K ≤ N: one to one with the most matched pixels (Hungarian assignment), every cluster with a class. K > N: each
    cluster with the class of most of its pixels, the lower id where equal, and an empty cluster with none.
    """
    if left is not None and len(left) < counts.shape[1]:
        found = match(counts[:, list(left)])
        classes_of = dict(zip(left, found.cluster_to_class, strict=True))
        every = range(counts.shape[1])
        return Matching(tuple(classes_of.get(k, -1) for k in every), found.kind)
    classes, clusters = counts.shape
    if clusters > classes:
        best = np.where(counts.any(axis=0), counts.argmax(axis=0), -1)
        return Matching(tuple(best.tolist()), "many-to-one")
    return Matching(tuple(best_pairs(counts.T).tolist()), "hungarian")


def score(
    counts: Counts, matching: Matching, names: Sequence[str], kinds: Sequence[str | None]
) -> Scores:
    """Scores of a confusion matrix (N K) under a matching; `kinds` are `thing`, `stuff` or None.

    IoU is matched / (labelled + predicted - matched) pixels of a class, accuracy matched / labelled. Raises InputError
    when no pixel is labelled.
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
    belongs = np.equal.outer(matching.cluster_to_class, range(classes))
    by_class = counts @ belongs
    predicted, matched = by_class.sum(axis=0), by_class.diagonal()
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
        iou=tuple(float(iou[n]) if present[n] else None for n in range(classes)),
        accuracy=tuple(float(accuracy[n]) if present[n] else None for n in range(classes)),
        share=tuple((100.0 * labelled / total).tolist()),
        clusters_in_use=int(counts.any(axis=0).sum()),
    )
