"""Rows about clustering and scoring."""

from __future__ import annotations

import time
from collections.abc import Iterator

import faiss
import numpy as np
import torch
from measure import Row, alternate, rate_row, ratio_row, threads
from torch.nn import functional as F

from densesiam_seg.clustering.kmeans import ITERATIONS, assign, kmeans
from densesiam_seg.evaluation.metrics import confusion
from densesiam_seg.inference.upsampling import upsample_argmax

CHANNELS, CLUSTERS = 128, 27


def kmeans_rows(points: int, repeats: int) -> Iterator[Row]:
    """`kmeans` as used against FAISS alone at the same points and iterations; all cores, wall time."""
    draw = torch.Generator().manual_seed(0)
    data = F.normalize(torch.randn(points, CHANNELS, generator=draw), dim=1)

    def alone() -> None:
        machine = faiss.Kmeans(
            CHANNELS,
            CLUSTERS,
            niter=ITERATIONS,
            seed=0,
            min_points_per_centroid=1,
            max_points_per_centroid=points,
        )
        machine.train(data.numpy())

    ours, bare = alternate(lambda: kmeans(data, CLUSTERS, seed=0), alone, repeats=repeats)
    yield ratio_row(
        "k-means as used / FAISS alone",
        ours,
        bare,
        1.1,
        note=f"{points:,} x {CHANNELS}, K = {CLUSTERS}, {ITERATIONS} iterations, {min(bare):.1f} s",
    )


def assign_rows(repeats: int) -> Iterator[Row]:
    """Points a second and core."""
    points, centres = torch.randn(500_000, CHANNELS), torch.randn(CLUSTERS, CHANNELS)
    with threads(1):
        (seconds,) = alternate(
            lambda: assign(points, centres), repeats=repeats, clock=time.process_time
        )
    yield rate_row(
        "assignment to the nearest centre", len(points) / 1e6, seconds, "M points/s", None
    )


def scoring_rows(repeats: int) -> Iterator[Row]:
    """Pixels a second and core."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 27, (32, 320, 320)).astype(np.uint8)
    labels[draw.random(labels.shape) < 0.1] = 255
    predictions = draw.integers(0, CLUSTERS, labels.shape).astype(np.uint8)

    def count() -> None:
        for label, prediction in zip(labels, predictions, strict=True):
            confusion(label, prediction, 27, CLUSTERS)

    smooth = F.interpolate(torch.randn(8, CLUSTERS, 6, 8), (54, 72), mode="bicubic")
    rough = torch.randn(8, CLUSTERS, 54, 72)
    with threads(1):
        counted, easy, hard = alternate(
            count,
            lambda: [upsample_argmax(logits, 360, 480) for logits in smooth],
            lambda: [upsample_argmax(logits, 360, 480) for logits in rough],
            repeats=repeats,
            clock=time.process_time,
        )
    pixels = labels.size / 1e6
    yield rate_row(
        "confusion matrix, a core", pixels, counted, "M pixels/s", 300, note="27 classes"
    )
    pixels = 8 * 360 * 480 / 1e6
    yield rate_row("upsample + argmax, smooth logits, a core", pixels, easy, "M pixels/s", None)
    yield rate_row("upsample + argmax, every cell mixed, a core", pixels, hard, "M pixels/s", None)
