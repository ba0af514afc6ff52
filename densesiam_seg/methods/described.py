"""Clusters of pre-trained features: found before the first step, then trained on views that replay each image.

Axes: B images, V views, L of them in the image's own size, K clusters, C channels of the description, D of appearance,
S stored side, h w = the grid.

The backbone is frozen, so a place's description in every view is computed once and kept. The clusters are chosen by
views in several lights and by the image enlarged: every size in which it is read is then the next larger one. Enlarged,
small things and borders are described better, but large ones lose their context: its posteriors are the targets that
the K-way layer learns for the image in its own size (PixSim with a teacher in place of the predictor). The teacher is
the layer itself as it was at the start of the round. Targets are sharpened, which makes large clusters larger; a bias
brings them most of the way back to the shares that the clusters had at first.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.clustering.appearance import appearance
from densesiam_seg.clustering.directions import find_directions
from densesiam_seg.clustering.mixture import Search, find_gaussians
from densesiam_seg.clustering.quality import Sample
from densesiam_seg.config import TrainConfig
from densesiam_seg.images.store import ImageStore
from densesiam_seg.io.devices import free_memory
from densesiam_seg.io.parallel import device_lock, on_own_cores
from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.methods.losses import label_counts, prior_loss
from densesiam_seg.methods.method import Method, Objective, Terms, weighted
from densesiam_seg.methods.mixture_prior import LIGHTS
from densesiam_seg.network.encoder import Encoder
from densesiam_seg.network.inference_form import inference_form
from densesiam_seg.network.model import FINER, DenseSiam
from densesiam_seg.peers.exact import ExactSum
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.views.photometric import normalise

IMAGES = 500
"""Images that description and clusters are fitted to and shares are counted in, evenly spaced in the set."""
POINTS = 30_000
"""Places that clusters are fitted to."""
APPEARANCE_SEARCH = Search(24, 4)
"""Fewer fits than without learned features, which seldom lose."""
MARGIN = 0.01
"""By so much clusters of appearance must be more stable than those of learned features: the spread of their fits."""
SHARPENING = 2.0
"""Factor on the log-posteriors of targets."""
BALANCING = 2
"""Steps in which sharpened posteriors are brought nearer to the clusters' shares; these few do not reach them."""
ROUND_STEPS = 25
"""A teacher is kept for the epochs that make about so many steps."""
MEMORY_SHARE = 0.25
"""Share of the machine's free memory that kept descriptions may take."""


Views: TypeAlias = tuple[list[list[Tensor]], list[list[Tensor]]]
"""Stages by size: of all L lights side by side (L, S_i, h_i, w_i), and of the image enlarged (1, S_i, h_i, w_i)."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Described(Method):
    """Training of the K-way layer over the description of a frozen backbone."""

    def __init__(self, network: DenseSiam, config: TrainConfig, *, group: Group = ALONE) -> None:
        self.network = network
        self.config = config
        self.group = group
        clusters = config.clusters
        self._state = {
            "prepared": torch.tensor(-1),  # the last epoch that was prepared
            "shares": torch.full((clusters,), 1 / clusters),  # of the clusters before training
            "teacher": torch.zeros(clusters, network.encoder.width, 1, 1),
            "bias": torch.zeros(clusters),  # the teacher's, with what brings the shares back
        }
        self._kept: dict[int, Tensor] = {}
        """By image: appearance and description, as it is and enlarged, (2, D + C, h, w), half precision."""
        self._budget = MEMORY_SHARE * free_memory()
        self._form: DenseSiam | None = None

    def trained(self) -> nn.Module:
        """The K-way layer alone."""
        return self.network.projector

    def prepare(self, store: ImageStore, epoch: int) -> Iterator[int]:
        """Before the first epoch the description is fitted, and clusters of it and of appearance.

        Those that change less in the other views are what training starts from: the K-way layer, or the mixture over
        appearance. Features of a network bear other light, appearance bears another size.

        Before the first epoch of each round the layer becomes the teacher.
        """
        if epoch <= self._state["prepared"]:
            return
        if epoch == 0:
            yield from self._fit(store)
        if epoch % max(round(ROUND_STEPS / max(len(store) // self.config.batch_size, 1)), 1) == 0:
            self._teach(store, first=epoch == 0)
        self._state["prepared"].fill_(epoch)

    def objective(self, images: Tensor, indices: Sequence[int], epoch: int) -> Objective:
        """Cross-entropy of the image in its own size with the targets of the enlarged one."""
        known = self._places_of(zip(images, indices, strict=True))

        def read(places: Tensor) -> Tensor:
            return self._dense(places.to(images.device).float())

        # Each on one core: what a mixture computes is too short for several, which would wait for each other.
        own, enlarged = torch.stack(list(self._of_each(read, known)), 1)
        targets, scores = self._targets(enlarged), self.network.scores(own)
        with torch.no_grad():
            winners = scores.argmax(1)
            agreement = torch.eq(winners, targets.argmax(1)).float().mean()
            histogram = label_counts(winners, self.config.clusters)
        terms: Terms = {"pixel": (1.0, prior_loss(scores, targets))}
        return Objective(*weighted(terms), agreement, histogram)

    def state(self) -> dict[str, Tensor]:
        """The teacher, and how far the epochs are prepared."""
        return self._state

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self._state = dict(tensors)

    @torch.no_grad()
    def _fit(self, store: ImageStore) -> Iterator[int]:
        """Yields progress, as a number of images: half for reading them, half for the fits.

        Each process reads its part of the images, in the order of the set. What all need is computed by one of them
        and sent, or added up exactly, so that they begin with one and the same model for any number of processes.
        """
        network, mixture, group = self.network, self.network.mixture, self.group
        description = network.encoder.description
        assert mixture is not None and description is not None
        chosen = _chosen(store)
        part = group.shard.part(len(chosen))
        own = chosen[part.start : part.stop]
        read = yield from self._read(store, own, len(chosen))
        # A process may have no image.
        grid = next(filter(None, group.gathered(_coarser(read[0][1]) if read else None)))
        description.fit(
            [[[stage[:1] for stage in size] for size in sizes] for (sizes, _), _ in read],
            grid,
            count=len(chosen),
            group=group,
        )
        described = list(self._of_each(lambda each: self._described(each[0], grid), read))
        learned = self._sample(own, described, len(chosen))
        looks = self._sample(own, [look for _, look in read], len(chosen))
        clusters, seed, half = self.config.clusters, self.config.seed, len(chosen) / 2
        directions, stable = yield from _reported(
            find_directions(learned, clusters, seed=seed, group=group), half, 1.5 * half
        )
        search = find_gaussians(
            looks, clusters, mixture.gist, seed=seed, search=APPEARANCE_SEARCH, group=group
        )
        gaussians = yield from _reported(search, 1.5 * half, 2 * half)
        if gaussians.stability > stable + MARGIN:
            mixture.adopt(gaussians)
        else:
            weight, bias = network.projector.parameters()
            weight.copy_(directions.axes[:, :, None, None])
            bias.copy_(directions.logs)
        for index, each, (_, look) in zip(own, described, read, strict=True):
            self._keep(index, self._joined(each[[0, -1]], look[[0, -1]]))

    def _read(
        self, store: ImageStore, own: Sequence[int], count: int
    ) -> Generator[int, None, list[tuple[Views, Tensor]]]:
        """Stages and appearance of this process's `own` images of `count`; yields half of how many are read."""
        read: list[tuple[Views, Tensor]] = []
        batches = store.batches([(index,) for index in own])
        for views in self._of_each(lambda batch: self._stages(batch.images), batches):
            read.append(views)
            yield -(-min(len(read) * self.group.count, count) // 2)
        return read

    def _of_each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`work` of each item on one core, so that no number depends on how many there are; on a GPU in turn."""
        lock = device_lock(self._device)
        if self._form is None:
            # Not before the weights are there, and not by one of several threads.
            plain = self.config.exact() or self._device.type != "cpu"
            self._form = self.network if plain else inference_form(self.network, torch.float32)

        def alone(item: Item) -> Result:
            # As before the first step, where no step's precision is set: a run that goes on finds the same.
            with lock, torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                return work(item)

        with closing(on_own_cores(alone, items, max_waiting=1)) as results:
            for each in results:
                # What is done with it meanwhile takes no core from the others; the number is restored at the end.
                torch.set_num_threads(1)
                yield each

    @property
    def _reader(self) -> Encoder:
        """The encoder as passes without gradients need it."""
        return (self._form or self.network).encoder

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _sample(self, own: Sequence[int], places: Sequence[Tensor], count: int) -> Sample:
        """About `POINTS` of the places (V, C, h, w) of `count` images, the same number from each; the last view is
        enlarged.

        A process's `own` images and their places make part of it, all of which every process gets.
        """
        share = -(-POINTS // count)
        drawn = []
        for index, views in zip(own, places, strict=True):
            draw = generator(self.config.seed, Stream.PIXELS, 0, index)
            points = views.flatten(2).mT
            chosen = torch.from_numpy(draw.permutation(points.shape[1])[:share])
            # What is sent from one GPU would arrive on the same one.
            drawn.append(points[:, chosen].cpu())
        sampled = [each for part in self.group.gathered(drawn) for each in part]
        counts = torch.tensor([each.shape[1] for each in sampled])
        views = torch.cat(sampled, 1).float()
        numbers = torch.arange(len(counts)).repeat_interleave(counts)
        return Sample(views[0], views[1:-1], numbers, views[-1])

    @torch.no_grad()
    def _teach(self, store: ImageStore, *, first: bool) -> None:
        """Make the K-way layer the teacher, with a bias towards the first shares; the `first` teacher's are counted.

        Each process counts in its part of the images.
        """
        state, (weight, bias) = self._state, self.network.projector.parameters()
        state["teacher"], state["bias"] = weight.detach().clone(), bias.detach().clone()
        chosen = _chosen(store)
        part = self.group.shard.part(len(chosen))
        own = chosen[part.start : part.stop]
        missing = [(index,) for index in own if index not in self._kept]
        images = {batch.indices[0]: batch.images[0] for batch in store.batches(missing)}
        places = self._places_of((images.get(index), index) for index in own)

        def mean(view: int, sharpening: float) -> Tensor:
            def of_one(each: Tensor) -> Tensor:
                dense = self._dense(each[view][None].to(weight.device).float())
                return self._targets(dense, sharpening).mean((0, 2, 3)).cpu()

            # Rounding may make more than 1 of a share.
            total = ExactSum(2.0, len(chosen))
            for found in self._of_each(of_one, places):
                total.add(found)
            return (total.total(self.group, torch.zeros(len(bias))) / len(chosen)).to(bias)

        def added() -> Tensor:
            # Of an unused cluster neither is more than a rounding error.
            ratio = state["shares"].to(shares).clamp(min=1e-4) / shares.clamp(min=1e-4)
            return (ratio.log() / SHARPENING).cpu()

        if first:
            state["shares"] = mean(0, 1.0)
        for _ in range(BALANCING):
            shares = mean(1, SHARPENING)
            # Logarithms differ between processors.
            state["bias"] += self.group.by_first(added).to(bias)

    def _targets(self, dense: Tensor, sharpening: float = SHARPENING) -> Tensor:
        """The teacher's posteriors (B, K, h, w) of what `DenseSiam.scores` reads."""
        width = self.network.encoder.width
        state = self._state
        with torch.no_grad(), torch.autocast(dense.device.type, enabled=False):
            teacher, bias = (state[name].to(dense.device) for name in ("teacher", "bias"))
            logs = F.conv2d(dense[:, :width], teacher, bias) + dense[:, width:]
            return (sharpening * logs).softmax(1)

    def _places_of(self, images: Iterable[tuple[Tensor | None, int]]) -> list[Tensor]:
        """What is kept of stored images, uint8 (3, S, S), each of which may be None where it is kept already."""
        pairs = list(images)
        missing = [(image, index) for image, index in pairs if index not in self._kept]
        seen = self._of_each(self._seen, missing) if missing else ()
        found = dict(zip([index for _, index in missing], seen, strict=True))
        for index, places in found.items():
            self._keep(index, places)
        return [found[index] if index in found else self._kept[index] for _, index in pairs]

    def _seen(self, pair: tuple[Tensor | None, int]) -> Tensor:
        image, _ = pair
        assert image is not None
        views, look = self._stages(image[None], lights=())
        return self._joined(self._described(views, _coarser(look)), look)

    def _keep(self, index: int, places: Tensor) -> None:
        self._budget -= places.nbytes
        if self._budget >= 0:
            self._kept[index] = places

    def _stages(self, image: Tensor, lights: Sequence[float] = LIGHTS) -> tuple[Views, Tensor]:
        """The stages of a stored image (1, 3, S, S), and its appearance in all views (V, D, 2h, 2w).

        The views are the image as it is, in these `lights`, and enlarged. Both are in half precision, in which k-means
        finds the same.
        """
        encoder, device = self._reader, self._device
        side = encoder.zoom * self.config.image_size
        shown = image.float()
        if image.shape[-1] != side:
            shown = F.interpolate(shown, (side, side), mode="bilinear", antialias=True)
        lit = [(shown * light).clamp(max=255).to(device) / 255 for light in (1.0, *lights)]
        larger = (1 + encoder.zoom) / encoder.zoom
        large = F.interpolate(shown, scale_factor=larger, mode="bilinear")
        # One by one: in a batch of another size some layers of some backbones round otherwise.
        passes = [encoder.described_stages(normalise(each)) for each in lit]
        own = [
            [torch.cat(stage) for stage in zip(*size, strict=True)]
            for size in zip(*passes, strict=True)
        ]
        largest = encoder.coarsest_stages(normalise(large.to(device) / 255))
        enlarged = [*([stage[:1] for stage in size] for size in own[1:]), largest]
        cells = encoder.grid(own[0])
        grid = (FINER * cells[0], FINER * cells[1])
        look = torch.cat([appearance(each, grid) for each in lit])
        finer = (round(larger * grid[0]), round(larger * grid[1]))
        closer = appearance(lit[0], finer)
        closer = F.interpolate(closer, grid, mode="bilinear", antialias=True)
        views = _halved(own), _halved(enlarged)
        return views, torch.cat((look, closer)).half()

    def _described(self, views: Views, grid: tuple[int, int]) -> Tensor:
        """The description in all views, (V, C, h, w), half precision."""
        description = self.network.encoder.description
        assert description is not None
        found = [
            description([[each.float() for each in size] for size in view], grid) for view in views
        ]
        return torch.cat(found).half()

    def _joined(self, described: Tensor, look: Tensor) -> Tensor:
        """Description and appearance of some views → both (V, D + C, h, w), as the network reads them out."""
        mixture = self.network.mixture
        assert mixture is not None
        if mixture.fitted:
            described = F.interpolate(described.float(), scale_factor=FINER, mode="bilinear")
        else:
            look = F.avg_pool2d(look.float(), FINER)
        return torch.cat((look.half(), described.half()), 1)

    def _dense(self, places: Tensor) -> Tensor:
        """Appearance and description (B, D + C, h, w) → what `DenseSiam.scores` reads."""
        mixture = self.network.mixture
        assert mixture is not None
        channels = len(mixture.mean)
        look, described = places[:, :channels], places[:, channels:]
        if mixture.fitted:
            return torch.cat((described, mixture(look)), 1)
        # As it says of every place before it is fitted.
        clusters = self.config.clusters
        alike = described.new_tensor(1 / clusters).log()
        return torch.cat((described, alike.expand(len(places), clusters, *places.shape[2:])), 1)


def _halved(view: list[list[Tensor]]) -> list[list[Tensor]]:
    """Stages by size in half precision."""
    return [[stage.half() for stage in size] for size in view]


def _coarser(look: Tensor) -> tuple[int, int]:
    """The description's grid, from appearance on one that is finer."""
    return look.shape[-2] // FINER, look.shape[-1] // FINER


def _reported(
    steps: Generator[float, None, Result], first: float, last: float
) -> Generator[int, None, Result]:
    """The result of steps that yield the fraction done; yields whole numbers from `first` to `last`."""
    while True:
        try:
            yield round(first + next(steps) * (last - first))
        except StopIteration as end:
            result: Result = end.value
            return result


def _chosen(store: ImageStore) -> list[int]:
    """The positions of at most `IMAGES` images."""
    count = min(IMAGES, len(store))
    positions: list[int] = torch.linspace(0, len(store) - 1, count).round().long().tolist()
    return positions
