"""Clusters of pre-trained features: found before the first step, then trained on views that replay each image.

Axes: B images, V views, L of them in the image's own size, K clusters, C channels of the description, D of appearance,
S stored side, h w = the grid.

The backbone is frozen, so a place's description in every view is computed once and kept. The views are the image in
several lights and enlarged. Enlarged, small things and borders are described better, but large ones lose their context:
its posteriors are the targets that the K-way layer learns for all views of the image's own size (PixSim with a teacher
in place of the predictor). The teacher is the layer itself as it was at the start of the round. Targets are sharpened,
and brought back to the shares that the clusters had at first, since sharpening makes large clusters larger.
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
"""Images that description and mixture are fitted to and shares are counted in, evenly spaced in the set."""
POINTS = 30_000
"""Places that the mixture is fitted to."""
ENLARGEMENT = 1.5
SHARPENING = 2.0
"""Factor on the log-posteriors of targets."""
BALANCING = 5
"""Rounds in which sharpened posteriors are brought back to the clusters' shares."""
ROUND_STEPS = 50
"""A teacher is kept for the epochs that make so many steps."""
MEMORY_SHARE = 0.25
"""Share of the machine's free memory that kept descriptions may take."""


class Described(Method):
    """Training of the K-way layer over the description of a frozen backbone."""

    def __init__(self, network: DenseSiam, config: TrainConfig) -> None:
        self.network = network
        self.config = config
        clusters = config.clusters
        self._state = {
            "prepared": torch.tensor(-1),  # the last epoch that was prepared
            "shares": torch.full((clusters,), 1 / clusters),  # of the clusters before training
            "teacher": torch.zeros(clusters, network.encoder.width, 1, 1),
            "bias": torch.zeros(clusters),  # the teacher's, with what keeps the shares
        }
        self._kept: dict[int, Tensor] = {}
        """By image: appearance and description in all views, (V, D + C, h, w), half precision."""
        self._budget = MEMORY_SHARE * free_memory()

    def prepare(self, store: ImageStore, epoch: int) -> Iterator[int]:
        """Before the first epoch description and mixture are fitted, and the K-way layer becomes the mixture's.

        Before the first epoch of each round the layer becomes the teacher.
        """
        if epoch <= self._state["prepared"]:
            return
        if epoch == 0:
            yield from self._fit(store)
        if epoch % -(-ROUND_STEPS // max(len(store) // self.config.batch_size, 1)) == 0:
            self._teach(store, first=epoch == 0)
        self._state["prepared"].fill_(epoch)

    def objective(self, images: Tensor, indices: Sequence[int], epoch: int) -> Objective:
        """Cross-entropy of two views of the image's own size with the targets of the enlarged one."""
        network, config = self.network, self.config
        pairs = zip(images, indices, strict=True)
        places = torch.stack([self._places(*each).float() for each in pairs]).to(images.device)
        targets = self._targets(self._dense(places[:, -1]))
        draw = generator(config.seed, Stream.VIEWS, epoch, indices[0])
        first, second = draw.permutation(places.shape[1] - 1)[:2].tolist()
        scores = network.scores(self._dense(torch.cat((places[:, first], places[:, second]))))
        with torch.no_grad():
            winners = scores.argmax(1)
            agreement = torch.eq(*winners.chunk(2)).float().mean()
            histogram = label_counts(winners, config.clusters)
        terms: Terms = {"pixel": (1.0, prior_loss(scores, torch.cat((targets, targets))))}
        return Objective(*weighted(terms), agreement, histogram)

    def state(self) -> dict[str, Tensor]:
        """The teacher, and how far the epochs are prepared."""
        return self._state

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self._state = dict(tensors)

    @torch.no_grad()
    def _fit(self, store: ImageStore) -> Iterator[int]:
        """Yields progress, as a number of images: half for reading them, half for the fits."""
        network, mixture = self.network, self.network.mixture
        description = network.encoder.description
        assert mixture is not None and description is not None
        chosen = _chosen(store)
        stages: list[list[list[Tensor]]] = []
        looks: list[Tensor] = []
        for done, batch in enumerate(store.batches([(index,) for index in chosen]), 1):
            views, look = self._stages(batch.images)
            stages.append(views)
            looks.append(look)
            yield -(-done // 2)
        grid = looks[0].shape[-2:]
        description.fit(([stage[0] for stage in views[0]] for views in stages), grid)
        share = -(-POINTS // len(chosen))
        sampled = []
        for index, views, look in zip(chosen, stages, looks, strict=True):
            places = self._described(views, look)
            self._keep(index, places)
            draw = generator(self.config.seed, Stream.PIXELS, 0, index)
            points = places[:-1].cpu().float().flatten(2).mT
            sampled.append(points[:, torch.from_numpy(draw.permutation(points.shape[1])[:share])])
        counts = torch.tensor([each.shape[1] for each in sampled])
        points, *relit = torch.cat(sampled, 1)
        numbers = torch.arange(len(counts)).repeat_interleave(counts)
        sample = Sample(points, torch.stack(relit), numbers)
        for part in mixture.fitting(sample, seed=self.config.seed, search=LEARNED_SEARCH):
            yield round(len(chosen) * (1 + part) / 2)
        next(network.projector.parameters()).copy_(mixture.directions[:, :, None, None])

    @torch.no_grad()
    def _teach(self, store: ImageStore, *, first: bool) -> None:
        """Make the K-way layer the teacher, with a bias that keeps the shares; the `first` one's are counted."""
        state, (weight, bias) = self._state, self.network.projector.parameters()
        device = weight.device
        state["teacher"], state["bias"] = weight.detach().clone(), bias.detach().clone()
        chosen = _chosen(store)
        missing = [(index,) for index in chosen if index not in self._kept]
        images = {batch.indices[0]: batch.images[0] for batch in store.batches(missing)}
        places = [self._places(images.get(index), index) for index in chosen]

        def mean(view: int, sharpening: float) -> Tensor:
            total = torch.zeros(self.config.clusters, device=device)
            for each in places:
                dense = self._dense(each[view][None].to(device).float())
                total += self._targets(dense, sharpening).mean((0, 2, 3))
            return total / len(places)

        if first:
            state["shares"] = mean(0, 1.0)
        for _ in range(BALANCING):
            # Of an unused cluster neither is more than a rounding error.
            ratio = state["shares"].clamp(min=1e-4) / mean(-1, SHARPENING).clamp(min=1e-4)
            state["bias"] += ratio.log() / SHARPENING

    def _targets(self, dense: Tensor, sharpening: float = SHARPENING) -> Tensor:
        """The teacher's posteriors (B, K, h, w) of what `DenseSiam.scores` reads."""
        width = self.network.encoder.width
        state = self._state
        with torch.no_grad(), torch.autocast(dense.device.type, enabled=False):
            teacher, bias = (state[name].to(dense.device) for name in ("teacher", "bias"))
            logs = F.conv2d(dense[:, :width], teacher, bias) + dense[:, width:]
            return (sharpening * logs).softmax(1)

    @torch.no_grad()
    def _places(self, image: Tensor | None, index: int) -> Tensor:
        """Appearance and description of a stored image, uint8 (3, S, S), in all views; of a kept one it may be None."""
        known = self._kept.get(index)
        if known is None:
            assert image is not None
            known = self._described(*self._stages(image[None]))
            self._keep(index, known)
        return known

    def _keep(self, index: int, places: Tensor) -> None:
        self._budget -= places.nbytes
        if self._budget >= 0:
            self._kept[index] = places

    def _stages(self, image: Tensor) -> tuple[list[list[Tensor]], Tensor]:
        """The stages of a stored image (1, 3, S, S), of all lights and enlarged, and its appearance (L, D, h, w).

        Stages are in half precision, which k-means of the same features cannot be told from.
        """
        network = self.network
        device = next(network.parameters()).device
        shown = image.float() if network.encoder.zoom > 1 else at_input_size(image)
        lit = torch.cat([(shown * light).clamp(max=255) for light in (1.0, *LIGHTS)])
        large = F.interpolate(shown, scale_factor=ENLARGEMENT, mode="bilinear")
        found = []
        with torch.autocast(device.type, enabled=False):
            for view in (lit, large):
                stages = network.encoder.described_stages(normalise(view.to(device) / 255))
                found.append([stage.half() for stage in stages])
            grid = network.encoder.grid(found[0])
            return found, network.appearance(lit.to(device) / 255, grid)

    def _described(self, views: Sequence[Sequence[Tensor]], appearance: Tensor) -> Tensor:
        """What `_stages` found → appearance and description in all views, (V, D + C, h, w); those of lights first."""
        description, grid = self.network.encoder.description, self.network.encoder.grid
        assert description is not None
        lit, large = ([stage.float() for stage in stages] for stages in views)
        size = appearance.shape[-2:]
        with torch.autocast(appearance.device.type, enabled=False):
            own = description(lit, (size[0], size[1]))
            finer = F.interpolate(
                description(large, grid(large)), size, mode="bilinear", antialias=True
            )
            found = torch.cat((own, F.normalize(finer, dim=1)))
            return torch.cat((torch.cat((appearance, appearance[:1])), found), 1).half()

    def _dense(self, places: Tensor) -> Tensor:
        """Appearance and description (B, D + C, h, w) → what `DenseSiam.scores` reads."""
        mixture = self.network.mixture
        assert mixture is not None
        channels = len(mixture.mean)
        return torch.cat((places[:, channels:], mixture(places[:, :channels])), 1)


def _chosen(store: ImageStore) -> list[int]:
    """The positions of at most `IMAGES` images."""
    count = min(IMAGES, len(store))
    positions: list[int] = torch.linspace(0, len(store) - 1, count).round().long().tolist()
    return positions
