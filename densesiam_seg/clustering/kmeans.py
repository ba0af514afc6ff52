"""k-means over dense features. The only module that imports FAISS.

Axes: N pixels, C channels, K clusters, B images.

Centroids start from FAISS k-means on a sample and are refined by mini-batches over the data (PiCIE, CVPR 2021,
section 3; `lloyd`). Assignment by the smallest squared distance is a 1×1 convolution: argmax over k of
2 c_k·f - |c_k|².
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.errors import InputError, NumericError

ITERATIONS = 20
BLOCK = 4096
"""Points whose distances are computed at once: they stay in the processor's cache."""
MAX_MAGNITUDE = 1e6
"""Largest feature magnitude that is handed to FAISS, whose distances overflow (and abort the process) near 3e18."""


@dataclass(frozen=True)
class Centroids:
    """K cluster centres (K, C) in float32 and how many points were assigned to each, (K,) int64."""

    centres: Tensor
    counts: Tensor

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Weight (K, C, 1, 1) and bias (K,) of the 1×1 convolution whose argmax is the nearest centre."""
        return 2.0 * self.centres[:, :, None, None], -self.centres.square().sum(1)


def unit_features(features: Tensor) -> Tensor:
    """L2-normalised features over channels (dimension 1), in float32."""
    return F.normalize(features.float(), dim=1)


def require_bounded(features: Tensor) -> None:
    """Raises NumericError for features that are not finite, or so large that their squares may not be.

    FAISS would end the process, and L2-normalisation would make zeros of them.
    """
    # A single pass without copies; no comparison with NaN is true.
    lowest, highest = torch.aminmax(features) if features.numel() else torch.zeros(2)
    if not (float(lowest) >= -MAX_MAGNITUDE and float(highest) <= MAX_MAGNITUDE):
        raise NumericError(
            "k-means: features are not finite or exceed 1e6; the model has diverged, train it with a lower rate"
        )


def kmeans(
    points: Tensor, clusters: int, *, seed: int, restarts: int = 1, iterations: int | None = None
) -> Centroids:
    """FAISS k-means of points (N, C), all of them used, in `ITERATIONS` or fewer, repeatable for a seed.

    Of `restarts` starts the one with the least sum of squared distances is kept; the first is that of a single one.
    Raises InputError for fewer points (or fewer distinct ones) than clusters and NumericError for points that are not
    finite or too large for FAISS.
    """
    import faiss

    features = points.detach().float().cpu().contiguous()
    require_bounded(features)
    data = features.numpy()
    lower = "lower --clusters (--over-clusters of a merge)"
    if clusters < 1 or len(data) < clusters:
        raise InputError(
            f"k-means: {len(data)} points cannot make {clusters} clusters; give more images or {lower}"
        )
    # With too few distinct points FAISS splits a centre in two without a warning. Usually a few points show enough.
    for part in (data[: 50 * clusters], data):
        distinct = len(np.unique(part, axis=0))
        if distinct >= clusters:
            break
    else:
        raise InputError(
            f"k-means: {len(data)} points, {distinct} of them distinct, cannot make {clusters} clusters; "
            f"give more varied images or {lower}"
        )
    machine = faiss.Kmeans(
        data.shape[1],
        clusters,
        niter=iterations or ITERATIONS,
        nredo=restarts,
        seed=seed % 2**31,
        min_points_per_centroid=1,
        # The default silently keeps 256 points per centre.
        max_points_per_centroid=len(data),
    )
    machine.train(data)
    centres = torch.from_numpy(np.array(machine.centroids, np.float32))
    counts = torch.bincount(assign(features, centres), minlength=clusters)
    return Centroids(centres, counts)


def kmeans_labels(points: Tensor, clusters: int, *, seed: int) -> Tensor:
    """The cluster (N,) of each point (N, C) by `kmeans`. Raises as it does."""
    single = points.float()
    return assign(single, kmeans(single, clusters, seed=seed).centres)


def assign(points: Tensor, centres: Tensor) -> Tensor:
    """Index (N,) of the nearest centre by squared distance."""
    bias = centres.square().sum(1)
    parts = [
        torch.addmm(bias, part.float(), centres.T, beta=-1.0, alpha=2.0).argmax(1)
        for part in torch.split(points, BLOCK)
    ]
    return torch.cat(parts)
