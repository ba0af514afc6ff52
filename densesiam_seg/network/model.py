"""The network: encoder, heads of pixels, regions and images (DenseSiam, section 3; SimSiam, section 3), and mixture.

Axes: B images, N vectors of regions or images, K clusters, A over-clusters, C channels, R view side, h = R/4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.clustering.appearance import Surroundings, appearance, gist_of
from densesiam_seg.clustering.mixture import Mixture, smoothed
from densesiam_seg.io.randomness import Stream, torch_seed
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.encoder import Encoder
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.views.geometric import warp
from densesiam_seg.views.pair import ViewPair
from densesiam_seg.views.parameters import Geometry
from densesiam_seg.views.photometric import denormalise

SHARPNESS = 3.0
"""Scales z, which has unit variance, before the softmax."""
FINER = 2
"""Where clusters are of appearance, it is read on a grid so many times as fine as the description's."""
SHARES_MOMENTUM = 0.1
"""Weight of the latest batch in the running mean of the projector's shares, as in batch normalisation."""


def projector(channels: int, outputs: int, *, pixels: bool) -> nn.Sequential:
    """Features (B, C, h, w) of `pixels` or vectors (N, C) → projection z (B, K, h, w) or (N, K).

    Each output has zero mean and unit deviation.
    """
    return nn.Sequential(
        *_hidden(channels, channels, pixels),
        *_hidden(channels, channels, pixels),
        # No bias: the batch norm after it would subtract it.
        _linear(channels, outputs, pixels, bias=False),
        nn.BatchNorm2d(outputs, affine=False) if pixels else nn.BatchNorm1d(outputs, affine=False),
    )


def predictor(outputs: int, hidden: int, *, pixels: bool) -> nn.Sequential:
    """Projection z → prediction p of the same shape, through `hidden` channels."""
    return nn.Sequential(
        *_hidden(outputs, hidden, pixels), _linear(hidden, outputs, pixels, bias=True)
    )


def _hidden(inputs: int, outputs: int, pixels: bool) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm2d(outputs) if pixels else nn.BatchNorm1d(outputs)
    return _linear(inputs, outputs, pixels, bias=False), norm, nn.ReLU(inplace=True)


def _linear(inputs: int, outputs: int, pixels: bool, *, bias: bool) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1, bias=bias) if pixels else nn.Linear(inputs, outputs, bias)


class DenseSiam(nn.Module):
    """Encoder, the pixel heads (K clusters, A over-clusters), the region and the image head; some may be None."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        clusters, over_clusters = architecture.clusters, architecture.over_clusters
        self.architecture = architecture
        self.encoder = Encoder(architecture.backbone, architecture.channels, architecture.features)
        width = self.encoder.width
        described = self.encoder.description is not None
        if described:
            # Linear and at first the clusters that were found, so that training starts from them.
            self.projector = nn.Sequential(nn.Conv2d(width, clusters, 1))
            for parameter in self.projector.parameters():
                nn.init.zeros_(parameter)
        else:
            self.projector = projector(width, clusters, pixels=True)
        self.predictor = predictor(clusters, width, pixels=True)
        self.over_projector = self.over_predictor = None
        if over_clusters:
            self.over_projector = projector(width, over_clusters, pixels=True)
            self.over_predictor = predictor(over_clusters, width, pixels=True)
        self.region_projector = projector(width, width, pixels=False)
        self.region_predictor = predictor(width, width, pixels=False)
        self.image_projector = self.image_predictor = None
        if architecture.image_head:
            self.image_projector = projector(width, width, pixels=False)
            # SimSiam's bottleneck.
            self.image_predictor = predictor(width, max(width // 4, 1), pixels=False)
        self.mixture = Mixture(clusters) if architecture.mixture else None
        if architecture.mixture and not described:
            self.usual: Tensor
            self.register_buffer("usual", torch.full((clusters,), 1 / clusters))

    @torch.no_grad()
    def update_mean_shares(self, z: Tensor, group: Group = ALONE) -> None:
        """Update `usual`, the running mean of the cluster shares in projections (B, K, h, w) of all processes."""
        shares = group.mean((SHARPNESS * z.float()).softmax(1).mean((0, 2, 3)), len(z))
        self.usual.lerp_(shares, SHARES_MOMENTUM)

    def paired_features(self, views: ViewPair) -> Tensor:
        """Features of both views in exact correspondence, (2B, C, h, h), view 1 first.

        Both views pass the encoder as one batch: they share batch statistics, and one large pass is faster than two.
        """
        features = self.encoder(torch.cat((views.image_1, views.image_2)))
        return matched(features, views.geometry)

    def region_outputs(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Projections u and predictions q of region embeddings (B, K, C), each (B, K, C)."""
        u = self.region_projector(embeddings.flatten(0, 1))
        return u.view_as(embeddings), self.region_predictor(u).view_as(embeddings)

    def dense(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → what `scores` reads, (B, C, h, w): features.

        Where there is a mixture its log-posteriors follow them, so that there are C + K channels.
        """
        return self.joined(*self.parts(images))

    @property
    def finer(self) -> bool:
        """Whether clusters are of appearance beside a description, and are read on a finer grid than that."""
        mixture = self.mixture
        return self.encoder.description is not None and mixture is not None and mixture.fitted

    def parts(
        self, images: Tensor, around: Surroundings | None = None, finer: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What `joined` makes `dense` of: the encoder's local features, and log-posteriors where there is a mixture.

        Of tiles, which see what is `around` them, both can be put together before they are joined. A program that is
        exported has no tensors to ask for `finer`, so that it is told.
        """
        local = self.encoder.local(images)
        if self.mixture is None:
            return local, None
        height, width = local.shape[-2:]
        factor = FINER if (self.finer if finer is None else finer) else 1
        size = (factor * height, factor * width)
        return local, self.log_posteriors(denormalise(images.float()), size, around)

    def joined(self, local: Tensor, logs: Tensor | None, finer: bool | None = None) -> Tensor:
        """The `parts` of whole images → `dense`."""
        features = self.encoder.settled(local)
        if logs is None:
            return features
        features = features.float()
        if self.finer if finer is None else finer:
            features = F.interpolate(features, logs.shape[-2:], mode="bilinear")
        return torch.cat((features, logs), 1)

    def log_posteriors(
        self, images: Tensor, size: Sequence[int], around: Surroundings | None = None
    ) -> Tensor:
        """Of the mixture's clusters in RGB images (B, 3, H, W) in [0, 1], as maps (B, K, h, w) of that size."""
        assert self.mixture is not None
        logs: Tensor = self.mixture(appearance(images, (size[0], size[1]), around))
        return logs

    def gist(self, images: Tensor) -> Tensor | None:
        """What the mixture knows of whole normalised images (B, 3, H, W), for their tiles; None where there is none."""
        logs = self.parts(images)[1]
        if logs is None:
            return None
        height, width = logs.shape[-2:]
        return gist_of(denormalise(images.float()), (height, width))

    def scores(self, dense: Tensor) -> Tensor:
        """What `dense` returned → cluster logits (B, K, h, w): z, or log-posteriors of z and mixture together.

        With a mixture they are a product of experts. The z of pre-trained stages is trained as one of its factors. A
        decoder's is trained by itself, so that both contain the prior of the clusters: the network's probabilities are
        divided by its mean cluster shares, so that the prior counts once.
        """
        if self.mixture is None:
            logits: Tensor = self.projector(dense)
            return logits
        features, logs = dense[:, : self.encoder.width], dense[:, self.encoder.width :]
        z: Tensor = self.projector(features)
        if self.encoder.description is not None:
            return (z.float() + logs).log_softmax(1)
        learned = (SHARPNESS * z.float()).log_softmax(1)
        # Smoothed: a cluster that the network never predicts would be divided by 0.
        mean_shares = smoothed(self.usual, self.mixture.shares)
        return (learned + logs - mean_shares.log().view(-1, 1, 1)).log_softmax(1)

    def forward(self, images: Tensor) -> Tensor:
        """Cluster logits (B, K, h, w) of normalised images (B, 3, H, W)."""
        return self.scores(self.dense(images))


def matched(features: Tensor, geometry: Geometry) -> Tensor:
    """Features of both views (2B, C, h, h), view 1 first: view 2's are warped onto view 1's."""
    features_1, features_2 = features.chunk(2)
    return torch.cat((features_1, warp(features_2, geometry).to(features.dtype)))


def build_network(architecture: Architecture, seed: int) -> DenseSiam:
    """A network whose initial weights are a function of the seed alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would set every GPU's generator too.
        torch.default_generator.manual_seed(torch_seed(seed, Stream.WEIGHTS))
        return DenseSiam(architecture)
