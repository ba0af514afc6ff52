"""The network joined from its parts.

Axes: B images, K clusters, A over-clusters, C channels, R view side, h = R/4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from densesiam_seg.encoder import Encoder
from densesiam_seg.heads import (
    pixel_predictor,
    pixel_projector,
    region_predictor,
    region_projector,
)
from densesiam_seg.randomness import Stream, torch_seed
from densesiam_seg.views import ViewPair, warp


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes the network's tensors."""

    backbone: str = "resnet18"
    channels: int = 128
    clusters: int = 27
    over_clusters: int = 128


class DenseSiam(nn.Module):
    """Encoder, the two pixel heads (K clusters, A over-clusters) and the region head."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels = architecture.channels
        self.architecture = architecture
        self.encoder = Encoder(architecture.backbone, channels)
        self.projector = pixel_projector(channels, architecture.clusters)
        self.predictor = pixel_predictor(architecture.clusters, channels)
        self.over_projector = pixel_projector(channels, architecture.over_clusters)
        self.over_predictor = pixel_predictor(architecture.over_clusters, channels)
        self.region_projector = region_projector(channels)
        self.region_predictor = region_predictor(channels)

    def paired_features(self, views: ViewPair) -> Tensor:
        """Features of both views in exact correspondence, (2B, C, h, h), view 1 first.

        Both views pass the encoder as one batch: they share batch statistics, and one large pass is faster than two.
        """
        features = self.encoder(torch.cat((views.image_1, views.image_2)))
        features_1, features_2 = features.chunk(2)
        return torch.cat((features_1, warp(features_2, views.geometry).to(features.dtype)))

    def forward(self, images: Tensor) -> Tensor:
        """Cluster logits z (B, K, h, w) of normalised images (B, 3, H, W)."""
        logits: Tensor = self.projector(self.encoder(images))
        return logits


def build_network(architecture: Architecture, seed: int) -> DenseSiam:
    """A network whose initial weights are a function of the seed alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would set every GPU's generator too.
        torch.default_generator.manual_seed(torch_seed(seed, Stream.WEIGHTS))
        return DenseSiam(architecture)
