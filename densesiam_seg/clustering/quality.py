"""How good clusters are, told without labels: whether other views and other images would give the same ones.

Axes: N points, D channels, L other lights (darker, brighter), K clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from densesiam_seg.clustering.agreement import normalised_mutual_information


class Fit(Protocol):
    """Clusters that were fitted to points."""

    def log_joint(self, points: Tensor) -> Tensor:
        """log of (weight × density) of each point (N, D) and cluster: (N, K)."""


@dataclass(frozen=True)
class Sample:
    """Points (N, D), the same places in L other lights (L, N, D) and enlarged (N, D), and each point's image (N,)."""

    points: Tensor
    relit: Tensor
    images: Tensor
    enlarged: Tensor | None = None

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Sample:
        enlarged = None if self.enlarged is None else change(self.enlarged)
        return Sample(change(self.points), change(self.relit), self.images.cpu(), enlarged)

    def double(self) -> Sample:
        """The same in double precision on the processor."""
        return self._mapped(lambda values: values.detach().cpu().double())

    def standardised(self, mean: Tensor, deviation: Tensor) -> Sample:
        """Each channel less its mean and divided by its deviation (D,), in every view."""
        return self._mapped(lambda values: (values - mean) / deviation)

    def without(self, channels: int) -> Sample:
        """The same points without their first channels."""
        return self._mapped(lambda values: values[..., channels:].contiguous())

    def part(self, count: int, draw: np.random.Generator) -> Tensor:
        """The points of randomly drawn images, as many as give at least `count` points, or all points."""
        sizes = self.images.bincount()
        order = torch.from_numpy(draw.permutation(len(sizes)))
        before = sizes[order].cumsum(0) - sizes[order]
        chosen = torch.zeros(len(sizes), dtype=torch.bool)
        chosen[order[before < count]] = True
        return self.points[chosen[self.images]]


def stability(fit: Fit, sample: Sample) -> float:
    """Normalised mutual information of a fit's clusters with those of the same places in other views.

    Light (the mean of all lights) and size count alike.
    """
    first = _labels(fit, sample.points)
    lights = [_label_nmi(first, _labels(fit, relit)) for relit in sample.relit]
    stable = sum(lights) / len(lights)
    if sample.enlarged is None:
        return stable
    return (stable + _label_nmi(first, _labels(fit, sample.enlarged))) / 2


def agreement(fits: Sequence[Fit], sample: Sample) -> float:
    """Normalised mutual information of the clusters of two fits, mean of all pairs; 0 without any."""
    labels = [_labels(fit, sample.points) for fit in fits]
    scores = [_label_nmi(one, other) for one, other in combinations(labels, 2)]
    return sum(scores) / max(len(scores), 1)


def _labels(fit: Fit, points: Tensor) -> Tensor:
    """The cluster (N,) of each of a sample's points, in any view."""
    return fit.log_joint(points).argmax(1)


def _label_nmi(one: Tensor, other: Tensor) -> float:
    """Normalised mutual information of two clusterings (N,)."""
    clusters = 1 + int(max(one.max(), other.max()))
    joint = (one * clusters + other).bincount(minlength=clusters**2)
    return normalised_mutual_information(joint.view(clusters, clusters).numpy())
