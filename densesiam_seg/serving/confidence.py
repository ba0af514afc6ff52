"""How sure the model is of each pixel, until `inference` tells it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.inference.options import AS_TRAINED
from densesiam_seg.inference.segmenter import Segmenter


def confidence(segmenter: Segmenter, scores: Tensor, height: int, width: int) -> NDArray[np.uint8]:
    """Scores (K, h, w) → (H, W) 0 to 255."""
    plain = AS_TRAINED.settled(segmenter.card.refine).plain
    shares = scores.softmax(0) if plain or segmenter.centroids is not None else scores
    shares = torch.zeros_like(shares).index_add_(0, torch.from_numpy(segmenter.grouping), shares)
    most = shares.amax(0)[None, None]
    found = F.interpolate(most, (height, width), mode="bilinear")[0, 0]
    return (255 * found).round().clamp(0, 255).to(torch.uint8).numpy()
