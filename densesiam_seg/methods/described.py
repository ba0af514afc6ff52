"""Clusters of pre-trained features: found before the first step, then trained to keep to edges in any light.

Axes: B images, L lights, K clusters, C channels of the description, D of appearance, S stored side, h w = the grid.

The backbone is frozen and the views differ in light alone, so a place's description is computed once and kept.
The targets are the mixture's posteriors of the image as it is: sharpened, and brought back to the mixture's own shares,
since sharpening makes large clusters larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.mixture import LEARNED_SEARCH, Sample
from densesiam_seg.config import TrainConfig
from densesiam_seg.images.store import ImageStore
from densesiam_seg.io.devices import free_memory
from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.methods.losses import label_counts, prior_loss
from densesiam_seg.methods.method import Method, Objective, Terms, weighted
from densesiam_seg.methods.mixture_prior import LIGHTS, at_input_size
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.views.photometric import normalise

IMAGES = 500
"""Images that description and mixture are fitted to, evenly spaced in the set."""
POINTS = 30_000
"""Places that the mixture is fitted to."""
SHARPENING = 2.0
"""Factor on the log-posteriors of targets."""
BALANCING = 3
"""Rounds in which sharpened posteriors are brought back to the mixture's shares."""
MEMORY_SHARE = 0.25
"""Share of the machine's free memory that kept descriptions may take."""


class Described(Method):
    """Training of the K-way layer over the description of a frozen backbone."""

    def __init__(self, network: DenseSiam, config: TrainConfig) -> None:
        self.network = network
        self.config = config
        self._kept: dict[int, Tensor] = {}
        """By image: appearance and description in all lights, (L, D + C, h, w)."""
        self.balance = torch.zeros(config.clusters)
        """Added to the log-posteriors of targets, so that sharpening does not change the clusters' shares."""
        self._budget = MEMORY_SHARE * free_memory()

    def prepare(self, store: ImageStore, epoch: int) -> Iterator[int]:
        """Before the first epoch description and mixture are fitted, and the K-way layer becomes the mixture's."""
        if epoch == 0:
            yield from self._fit(store)

    def objective(self, images: Tensor, indices: Sequence[int], epoch: int) -> Objective:
        """Cross-entropy of both views, two of the lights, with the targets of the image as it is."""
        network, config = self.network, self.config
        pairs = zip(images, indices, strict=True)
        places = torch.stack([self._places(*each).float() for each in pairs])
        draw = generator(config.seed, Stream.VIEWS, epoch, indices[0])
        first, second = draw.permutation(places.shape[1])[:2].tolist()
        targets = self._targets(places[:, 0])
        both = torch.cat((places[:, first], places[:, second]))
        scores = network.scores(self._dense(both))
        with torch.no_grad():
            winners = scores.argmax(1)
            agreement = torch.eq(*winners.chunk(2)).float().mean()
            histogram = label_counts(winners, config.clusters)
        terms: Terms = {"prior": (1.0, prior_loss(scores, torch.cat((targets, targets))))}
        return Objective(*weighted(terms), agreement, histogram)

    def state(self) -> dict[str, Tensor]:
        return {"balance": self.balance}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.balance = tensors["balance"]

    @torch.no_grad()
    def _fit(self, store: ImageStore) -> Iterator[int]:
        """Yields progress, as a number of images: half for reading them, half for the fits."""
        network, mixture = self.network, self.network.mixture
        description = network.encoder.description
        assert mixture is not None and description is not None
        chosen = torch.linspace(0, len(store) - 1, min(IMAGES, len(store))).round().long().tolist()
        stages: list[list[Tensor]] = []
        looks: list[Tensor] = []
        for done, batch in enumerate(store.batches([(index,) for index in chosen]), 1):
            found, appearance = self._stages(batch.images[0])
            # In half precision, which k-means of the same features cannot be told from.
            stages.append([stage.half() for stage in found])
            looks.append(appearance)
            yield -(-done // 2)
        grid = looks[0].shape[-2:]
        description.fit(([stage[0] for stage in each] for each in stages), grid)
        share = -(-POINTS // len(chosen))
        sampled = []
        for index, each, appearance in zip(chosen, stages, looks, strict=True):
            places = self._described(each, appearance)
            self._keep(index, places)
            draw = generator(self.config.seed, Stream.PIXELS, 0, index)
            points = places.float().flatten(2).mT
            sampled.append(points[:, torch.from_numpy(draw.permutation(points.shape[1])[:share])])
        counts = torch.tensor([each.shape[1] for each in sampled])
        points, *relit = torch.cat(sampled, 1)
        numbers = torch.arange(len(counts)).repeat_interleave(counts)
        sample = Sample(points, torch.stack(relit), numbers)
        for part in mixture.fitting(sample, seed=self.config.seed, search=LEARNED_SEARCH):
            yield round(len(chosen) * (1 + part) / 2)
        next(network.projector.parameters()).copy_(mixture.directions[:, :, None, None])
        self.balance = _balance(network.scores(self._dense(points.mT[None, :, :, None]))[0, :, :, 0])

    @torch.no_grad()
    def _targets(self, places: Tensor) -> Tensor:
        """The mixture's posteriors (B, K, h, w) at places with appearance and description (B, D + C, h, w)."""
        mixture = self.network.mixture
        assert mixture is not None
        dense, width = self._dense(places), self.network.encoder.width
        learned = F.conv2d(dense[:, :width], mixture.directions[:, :, None, None])
        logs = dense[:, width:] + learned
        return (SHARPENING * (logs + self.balance.view(-1, 1, 1))).softmax(1)

    def _places(self, image: Tensor, index: int) -> Tensor:
        """Appearance and description of a stored image, uint8 (3, S, S), in all lights: (L, D + C, h, w)."""
        known = self._kept.get(index)
        if known is None:
            with torch.no_grad():
                stages, appearance = self._stages(image)
                known = self._described([stage.half() for stage in stages], appearance)
            self._keep(index, known)
        return known

    def _keep(self, index: int, places: Tensor) -> None:
        self._budget -= places.nbytes
        if self._budget >= 0:
            self._kept[index] = places

    def _stages(self, image: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """What the description reads of an image, uint8 (3, S, S), in all lights, and its appearance (L, D, h, w)."""
        network = self.network
        shown = image[None].float() if network.encoder.zoom == 2 else at_input_size(image[None])
        lit = torch.cat([(shown * light).clamp(max=255) for light in (1.0, *LIGHTS)]) / 255
        with torch.autocast(lit.device.type, enabled=False):
            stages = network.encoder.described_stages(normalise(lit))
        return stages, network.appearance(lit, network.encoder.grid(stages))

    def _described(self, stages: Sequence[Tensor], appearance: Tensor) -> Tensor:
        description = self.network.encoder.description
        assert description is not None
        size = (appearance.shape[-2], appearance.shape[-1])
        found: Tensor = description([stage.float() for stage in stages], size)
        return torch.cat((appearance, found), 1).half()

    def _dense(self, places: Tensor) -> Tensor:
        """Appearance and description (B, D + C, h, w) → what `DenseSiam.scores` reads."""
        mixture = self.network.mixture
        assert mixture is not None
        channels = len(mixture.mean)
        return torch.cat((places[:, channels:].float(), mixture(places[:, :channels])), 1)


def _balance(logs: Tensor) -> Tensor:
    """What to add to log-posteriors (K, N) so that they have the same mean after sharpening."""
    shares = logs.softmax(0).mean(1)
    balance = torch.zeros_like(shares)
    for _ in range(BALANCING):
        found = (SHARPENING * (logs + balance[:, None])).softmax(0).mean(1)
        # Of an unused cluster neither is more than a rounding error.
        balance += (shares.clamp(min=1e-4) / found.clamp(min=1e-4)).log() / SHARPENING
    return balance
