"""The mixture as a prior: fitted to the training images, and its posteriors as targets at the places of both views.

Axes: B images, K clusters, S stored side, h feature side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.appearance import appearance
from densesiam_seg.clustering.quality import Sample
from densesiam_seg.images.store import Batch, ImageStore
from densesiam_seg.io.parallel import on_own_cores
from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.views.geometric import warp
from densesiam_seg.views.parameters import JITTER, Geometry

POINTS = 40_000
"""Places that the mixture is fitted to."""
IMAGES = 1_000
"""Images that they are taken from, evenly spaced in the set."""
STRIDE = 4
LIGHTS = (1 - JITTER, 1 + JITTER)
"""Lowest and highest brightness factor of a training view."""


def fit_mixture(
    network: DenseSiam, store: ImageStore, seed: int, *, group: Group = ALONE
) -> Iterator[int]:
    """Fit the network's mixture to places of the stored images; yields progress, as a number of images.

    Half of it is for reading the images, half for the fits. Each process of a group reads its part of the images and
    makes its part of the fits. Raises InputError and NumericError as `Mixture.fit` does.
    """
    assert network.mixture is not None
    chosen = torch.linspace(0, len(store) - 1, min(IMAGES, len(store))).round().long().tolist()
    places = Places(len(chosen), seed)
    own = group.shard.part(len(chosen))
    batches = store.batches([(chosen[place],) for place in own])

    def drawn(batch: Batch) -> Tensor:
        return places.drawn(at_input_size(batch.images), batch.indices[0])

    with closing(on_own_cores(drawn, batches)) as found:
        for done, each in enumerate(found, 1):
            places.sampled.append(each)
            yield -(-min(done * group.count, len(chosen)) // 2)
    sample = places.sample(group)
    for part in network.mixture.fitting(sample, seed=seed, group=group):
        yield round(len(chosen) * (1 + part) / 2)


class Places:
    """A sample of places from several images, about `POINTS` in all, the same number from each."""

    def __init__(self, images: int, seed: int) -> None:
        self.share = -(-POINTS // images)
        self.seed = seed
        self.sampled: list[Tensor] = []
        """What was drawn of each image."""

    def add(self, image: Tensor, index: int) -> None:
        """Sample places of an image."""
        self.sampled.append(self.drawn(image, index))

    def drawn(self, image: Tensor, index: int) -> Tensor:
        """Places (V, n, D) of an image (1, 3, H, W), 0 to 255, as it is and in `LIGHTS`, drawn by (seed, image)."""
        lit = torch.cat([(image.float() * light).clamp(max=255) for light in (1.0, *LIGHTS)])
        places = appearance_of(lit).flatten(2).mT
        draw = generator(self.seed, Stream.PIXELS, 0, index)
        chosen = torch.from_numpy(draw.permutation(places.shape[1])[: self.share])
        return places[:, chosen]

    def sample(self, group: Group = ALONE) -> Sample:
        """What a mixture is fitted to; of a group, whose processes have parts of the images, all of these in order."""
        sampled = [each for part in group.gathered(self.sampled) for each in part]
        counts = torch.tensor([each.shape[1] for each in sampled])
        points, *relit = torch.cat(sampled, 1)
        images = torch.arange(len(counts)).repeat_interleave(counts)
        return Sample(points, torch.stack(relit), images)


@torch.no_grad()
def prior_shares(network: DenseSiam, images: Tensor, geometry: Geometry, side: int) -> Tensor:
    """The mixture's posteriors (B, K, h, h) for stored images, uint8 (B, 3, S, S), warped to view 1."""
    logs = network.log_posteriors(at_input_size(images).div(255.0), (side, side))
    shares = warp(logs.exp(), geometry)
    # Bilinear weights add up to one but for rounding.
    return shares / shares.sum(1, keepdim=True)


def appearance_of(images: Tensor) -> Tensor:
    """Images (B, 3, H, W), 0 to 255 → their appearance (B, D, h, w) at the features' stride."""
    height, width = (-(-side // STRIDE) for side in images.shape[-2:])
    return appearance(images.float().div(255.0), (height, width))


def at_input_size(images: Tensor) -> Tensor:
    """Stored images, uint8 (B, 3, S, S) → at the model's input size, (B, 3, S/2, S/2).

    Resized as at inference: local contrast depends on the resize, and clusters differ little in it.
    """
    size = images.shape[-1] // 2
    return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
