"""How sure a model is of each pixel: probabilities of clusters, and what is said of them in one number.

Axes: B images, K clusters, h w scores, H W image; of a band of the image n rows.

The probabilities of clusters that are merged are added to that of the cluster they are merged into. What they are
depends on the read-out:

- a head's are the softmax of its scores; with a mixture these are log-posteriors of both together;
- after several passes or an edge filter they are the mean of the passes' probabilities, as the filter left them;
- of centroids they are the softmax of the scores, less than 1 by the squared distance, divided by `TEMPERATURE`. A
  k-means has no probabilities of its own: they rank pixels, and say nothing of how often the model is right.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter

TEMPERATURE = 0.1
"""Of squared distances of unit features: a centroid nearer by so much is e times as likely."""


def averaged(segmenter: Segmenter, refinement: Refinement = AS_TRAINED) -> bool:
    """Whether `Segmenter.scores` gives means of probabilities (`Segmenter.soft`) instead of logits."""
    return not refinement.settled(segmenter.card.refine).plain


def probabilities(
    segmenter: Segmenter,
    scores: Tensor,
    refinement: Refinement = AS_TRAINED,
    *,
    soft: bool | None = None,
) -> Tensor:
    """What `Segmenter.scores` gave with a refinement, (B, K, h, w) → probabilities (B, K, h, w) that sum to 1.

    Those of clusters that are merged into another are 0, as the other has them. With `soft` the scores are known to be
    probabilities (or not), whatever the refinement.
    """
    soft = averaged(segmenter, refinement) if soft is None else soft
    scores = scores.float()
    if segmenter.centroids is not None:
        found = (scores / TEMPERATURE).softmax(1)
    elif soft:
        # A guided filter may go a little beyond 0 and 1.
        found = scores.clamp(min=0)
        found = found / found.sum(1, keepdim=True).clamp(min=1e-12)
    else:
        found = scores.softmax(1)
    if all(cluster.left for cluster in segmenter.clusters):
        return found
    into = torch.from_numpy(segmenter.grouping).to(found.device)
    return torch.zeros_like(found).index_add_(1, into, found)


def confidence(found: Tensor) -> Tensor:
    """Probabilities (B, K, h, w) → that of the likeliest cluster (B, h, w)."""
    return found.amax(1)


def entropy(found: Tensor, left: int) -> Tensor:
    """Probabilities (B, K, h, w) of `left` clusters → their entropy over its largest value, 0 to 1, (B, h, w)."""
    if left < 2:
        return torch.zeros_like(found[:, 0])
    spread: Tensor = torch.special.entr(found).sum(1) / math.log(left)
    return spread
