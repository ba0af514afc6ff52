"""What fixes a network's tensors, as a model's card says it; torch is not needed to read or check it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Features = Literal["fpn", "res5", "stages"]


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes the network's tensors."""

    backbone: str = "resnet18"
    channels: int = 128
    clusters: int = 27
    over_clusters: int = 128
    """0: no over-clustering heads."""
    features: Features = "fpn"
    image_head: bool = False
    """SimSiam's projector and predictor of the pooled features."""
    mixture: bool = False
    """A mixture over appearance, whose log-posteriors are added to the projector's."""
