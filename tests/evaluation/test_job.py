"""A score with all that it depends on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from densesiam_seg.evaluation.job import Job
from densesiam_seg.evaluation.metrics import Matching

JOB = Job(
    "Tiny", "val", "full-image", 7, 9, ("x",), "0" * 64, 3, "head", None, ("a", "b"), (None, "stuff"), ("odd",)
)  # fmt: skip
COUNTS = np.array([[4, 0, 1], [0, 3, 0]])


def test_what_was_missing_is_not_scored() -> None:
    result = JOB.result(COUNTS, ["u", "v"], ["dark"])
    assert (result.images, result.expected, result.missing) == (5, 9, ("x", "u", "v"))
    assert result.notes == ("odd", "dark")
    assert result.matching == Matching((0, 1, 0), "many-to-one")
    assert result.scores.iou == (100.0, 100.0)
    assert result.to_dict()["counts"] == COUNTS.tolist()


def test_clusters_that_are_left_alone_are_counted() -> None:
    """The third is merged into the first."""
    merged = COUNTS @ np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    result = replace(JOB, left=(0, 1)).result(merged, [], [])
    assert (result.clusters, result.matching.cluster_to_class) == (2, (0, 1, -1))
    fixed = Matching((1, 0, 0), "identity")
    assert JOB.result(COUNTS, [], [], fixed).matching is fixed
