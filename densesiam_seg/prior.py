"""What training takes from a mixture: its clusters of the unchanged image, at the places of both views.

Axes: B images, K clusters, S stored side, h feature side.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from densesiam_seg.appearance import appearance
from densesiam_seg.batches import ImageStore
from densesiam_seg.draws import Geometry
from densesiam_seg.mixture import Sample
from densesiam_seg.model import DenseSiam
from densesiam_seg.randomness import Stream, generator
from densesiam_seg.views import warp

POINTS = 40_000
"""Places that the mixture is fitted to."""
IMAGES = 1_000
"""Images that they are taken from, evenly over the set."""
STRIDE = 4


def fit_mixture(network: DenseSiam, store: ImageStore, seed: int) -> Iterator[int]:
    """Fit the network's mixture to places of the stored images; yields how many images have been seen.

    The places are drawn by (seed, image). Raises InputError and NumericError as `Mixture.fit` does.
    """
    assert network.mixture is not None
    chosen = torch.linspace(0, len(store) - 1, min(IMAGES, len(store))).round().long().tolist()
    found = Places(len(chosen), seed)
    for done, (index, batch) in enumerate(
        zip(chosen, store.batches([(index,) for index in chosen]), strict=True), 1
    ):
        # A stored image has twice the side of a view.
        found.add(seen(batch.images, 2 * STRIDE), index)
        yield done
    network.mixture.fit(found.sample(), seed=seed)


class Places:
    """A sample of places from several images, about `POINTS` in all, the same number from each."""

    def __init__(self, images: int, seed: int) -> None:
        self.share = -(-POINTS // images)
        self.seed = seed
        self._found: list[Tensor] = []

    def add(self, maps: Tensor, index: int) -> None:
        """Take places of one image's maps (1, D, h, w), drawn by (seed, image)."""
        places = maps[0].flatten(1).T
        draw = generator(self.seed, Stream.PIXELS, 0, index)
        self._found.append(places[torch.from_numpy(draw.permutation(len(places))[: self.share])])

    def sample(self) -> Sample:
        """What a mixture is fitted to."""
        counts = torch.tensor([*map(len, self._found)])
        return Sample(torch.cat(self._found), torch.arange(len(counts)).repeat_interleave(counts))


@torch.no_grad()
def prior_shares(network: DenseSiam, images: Tensor, geometry: Geometry, side: int) -> Tensor:
    """Shares (B, K, h, h) of the mixture's clusters in stored images, uint8 (B, 3, S, S), where view 1 shows them."""
    logs = network.log_posteriors(images.float().div(255.0), (side, side))
    assert network.mixture is not None
    shares = warp(network.mixture.adapted(logs).exp(), geometry)
    # Bilinear weights add up to one but for rounding.
    return shares / shares.sum(1, keepdim=True)


def seen(images: Tensor, stride: int = STRIDE) -> Tensor:
    """uint8 images (B, 3, H, W) → their appearance (B, D, h, w) at a stride."""
    height, width = (-(-side // stride) for side in images.shape[-2:])
    return appearance(images.float().div(255.0), (height, width))
