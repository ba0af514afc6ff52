"""Scores → probabilities, and how sure they are.

Axes: B images, K clusters, h w scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from densesiam_seg.inference.segmenter import Segmenter


def probabilities(segmenter: Segmenter, scores: Tensor) -> Tensor:
    """Scores (B, K, h, w) → probabilities that sum to 1, those of merged clusters added to the one that shows them."""
    found = scores.float()
    averaged = segmenter.centroids is None and bool(
        (found.min() >= -1e-4) & ((found.sum(1) - 1).abs().max() < 1e-2)
    )
    found = found.clamp(min=0) / found.clamp(min=0).sum(1, True) if averaged else found.softmax(1)
    if all(each.left for each in segmenter.clusters):
        return found
    table = torch.from_numpy(segmenter.grouping).to(found.device)
    return torch.zeros_like(found).index_add_(1, table, found)


def confidence(found: Tensor) -> Tensor:
    """Probabilities (…, K, h, w) → the largest of each place (…, h, w)."""
    return found.amax(-3)


def entropy(segmenter: Segmenter, found: Tensor) -> Tensor:
    """Probabilities (…, K, h, w) → their entropy over that of equal ones (…, h, w): 0 is sure, 1 knows nothing."""
    count = len(segmenter.left)
    if count < 2:
        return torch.zeros_like(confidence(found))
    return torch.special.entr(found).sum(-3) / torch.tensor(float(count)).log()
