"""Points that are seen in several lights."""

from __future__ import annotations

import numpy as np
import torch

from densesiam_seg.clustering.quality import Sample


def lit_sample(contrast: float) -> Sample:
    """Two images of dark and bright places that differ by `contrast`, left and right; light shifts brightness by ±1."""
    draw = np.random.default_rng(0)
    left = torch.tensor([0.0, 1.0]).repeat(1000)
    noise = torch.from_numpy(draw.normal(size=(2, 2000))) / 10
    brightness = contrast * torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(500) + noise[0]
    points = torch.stack((brightness, left + noise[1]), 1)
    relit = torch.stack([points + torch.tensor([shift, 0.0]) for shift in (-1.0, 1.0)])
    return Sample(points, relit, torch.arange(2).repeat_interleave(1000))
