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
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.upsampling import bands

TEMPERATURE = 0.1
"""Of squared distances of unit features: a centroid nearer by so much is e times as likely."""
IGNORED = 255
"""The id of pixels that no cluster is given."""


def probabilities(
    segmenter: Segmenter, scores: Tensor, refinement: Refinement = AS_TRAINED
) -> Tensor:
    """What `Segmenter.scores` gave with a refinement, (B, K, h, w) → probabilities (B, K, h, w) that sum to 1.

    Those of clusters that are merged into another are 0, as the other has them.
    """
    scores = scores.float()
    if segmenter.centroids is not None:
        found = (scores / TEMPERATURE).softmax(1)
    elif not refinement.settled(segmenter.card.refine).plain:
        # A guided filter may go a little beyond 0 and 1.
        found = scores.clamp(min=0)
        found = found / found.sum(1, keepdim=True).clamp(min=1e-12)
    else:
        found = scores.softmax(1)
    if not segmenter.merged:
        return found
    into = torch.from_numpy(segmenter.grouping).to(found.device)
    grouped: Tensor = torch.zeros_like(found).index_add(1, into, found)
    return grouped


def confidence(found: Tensor) -> Tensor:
    """Probabilities (B, K, h, w) → that of the likeliest cluster (B, h, w)."""
    return found.amax(1)


def entropy(found: Tensor, left: int) -> Tensor:
    """Probabilities (B, K, h, w) of `left` clusters → their entropy over its largest value, 0 to 1, (B, h, w)."""
    if left < 2:
        return torch.zeros_like(found[:, 0])
    total: Tensor = torch.special.entr(found).sum(1)
    return total / math.log(left)


def grade(
    segmenter: Segmenter,
    scores: Tensor,
    mask: NDArray[np.integer],
    kinds: Collection[str] = ("confidence", "entropy"),
    refinement: Refinement = AS_TRAINED,
    *,
    least: float | None = None,
) -> dict[str, NDArray[np.uint8]]:
    """Maps (H, W) of these kinds, 0 to 255, of a mask made of scores (K, h, w); band by band, as K H W is too much.

    Confidence is here the probability of the cluster that the mask shows. Where it is below `least` the mask becomes
    `IGNORED`.
    """
    maps = {kind: np.empty(mask.shape, np.uint8) for kind in kinds}
    left = len(segmenter.left)
    for rows, part in bands(scores.detach().float(), *mask.shape):
        found = probabilities(segmenter, part[None], refinement)
        shown = torch.from_numpy(mask[rows].astype(np.int64)).to(found.device)
        own = found[0].gather(0, shown[None])[0]
        if "confidence" in maps:
            maps["confidence"][rows] = _bytes(own)
        if "entropy" in maps:
            maps["entropy"][rows] = _bytes(entropy(found, left)[0])
        if least is not None:
            mask[rows][(own < least).cpu().numpy()] = IGNORED
    return maps


def _bytes(shares: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = (255 * shares).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return found
