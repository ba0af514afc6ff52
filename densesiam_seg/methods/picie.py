"""PiCIE and MDC: k-means of the features before every epoch, then cross-entropy with its assignments.

Axes: B images of a batch, N images of the store, V views (2, or 1 for MDC), K clusters, C channels, h feature side.

Both after PiCIE (CVPR 2021), section 3: each view has centroids of its own, which are frozen for the epoch and classify
by negative squared distance. The clustering pass has the same batches and views as training, so only the
pseudo-labels have to be stored between the two. Every process has those of its own parts of the batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.clustering.kmeans import Centroids, unit_features
from densesiam_seg.clustering.lloyd import Part, refine, sampled_kmeans
from densesiam_seg.config import TrainConfig
from densesiam_seg.errors import InputError
from densesiam_seg.images.store import EpochBatches, ImageStore, epoch_batches
from densesiam_seg.io.devices import autocast, exact_device
from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.methods.losses import label_counts, pseudo_label_loss
from densesiam_seg.methods.method import Method, Objective, diverged, sound_features
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.views.pair import first_view, view_pair

CLUSTERING_IMAGES = 256
"""Images that the centroids are fitted to: the first of the epoch, whose order is drawn anew for every epoch."""
MAX_FEATURE_BYTES = 2**30
"""Limit on the features of those images in memory; beyond it the centroids are fitted to fewer images (at least one
batch). Keeping them makes one pass over the images enough for both centroids and pseudo-labels."""
SAMPLE = 100_000
"""Pixels per view in the sample of the initial k-means, spread evenly over those images."""

STRIDE = 32
"""Pixels of a place of the last stage."""

_START = "start."
"""What names of the first weights begin with."""

BatchFeatures = list[tuple[tuple[int, ...], Tensor]]
"""Positions of the images of batches, and their features (V·B, C, h, h)."""


class PiCIE(Method):
    """Pseudo-labels of both views, learned within a view and across; MDC is view 1 alone."""

    def __init__(
        self,
        network: DenseSiam,
        config: TrainConfig,
        device: torch.device,
        precision: torch.dtype,
        *,
        group: Group = ALONE,
    ) -> None:
        self.network = network
        self.config = config
        self.group = group
        self.device = device
        self.precision = precision
        self.views = 2 if config.method == "picie" else 1
        self.epoch: int | None = None
        """The epoch that centroids and pseudo-labels belong to."""
        self.centroids: tuple[Centroids, ...] = ()
        self.start: dict[str, Tensor] = {}
        """The encoder's tensors when that epoch began, which pseudo-labels are a function of."""
        self.labels: PseudoLabels | None = None
        """Of that epoch; None where it is restored, and they have to be computed again."""

    def prepare(self, store: ImageStore, epoch: int) -> Iterator[int]:
        """Compute an epoch's centroids and pseudo-labels in one pass over its batches; yields how many images are done.

        Each process does its part of every batch. Raises InputError for more clusters than pixels or batches of a
        single place, and NumericError for features that are not finite, too large to have a length or all the same.
        """
        if self.epoch == epoch:
            if self.labels is None:
                yield from self._label_again(store, epoch)
            return
        self._require_places()
        config = self.config
        groups = epoch_batches(len(store), config.batch_size, seed=config.seed, epoch=epoch)
        batches = self._fixed_batches(store, groups, epoch)
        checks: list[Tensor] = []
        collected: BatchFeatures = []
        done = 0
        for indices, features in batches:
            collected.append((indices, features))
            checks.append(sound_features(features))
            done += config.batch_size
            yield done
            # Of the whole batch, so that as many are collected however many processes there are.
            most = MAX_FEATURE_BYTES // (features[0].nbytes * self.views * config.batch_size)
            if done >= CLUSTERING_IMAGES or len(collected) >= most:
                break
        self._require_sound(checks, store, groups, epoch)
        centroids = tuple(self._cluster(collected, view, epoch) for view in range(self.views))
        start = {name: value.clone() for name, value in self.network.encoder.state_dict().items()}

        labels = self._no_labels(store, groups)
        while collected:
            indices, features = collected.pop()
            labels.put(indices, _nearest(features, centroids))
        for indices, features in batches:
            labels.put(indices, _nearest(features, centroids))
            checks.append(sound_features(features))
            done += config.batch_size
            yield done
        self._require_sound(checks, store, groups, epoch)
        self.epoch, self.centroids, self.start, self.labels = epoch, centroids, start, labels

    def _label_again(self, store: ImageStore, epoch: int) -> Iterator[int]:
        """The pseudo-labels of an epoch that a run goes on within: computed from the weights that it began with."""
        config, encoder = self.config, self.network.encoder
        groups = epoch_batches(len(store), config.batch_size, seed=config.seed, epoch=epoch)
        labels = self._no_labels(store, groups)
        present = {name: value.clone() for name, value in encoder.state_dict().items()}
        encoder.load_state_dict(self.start)
        try:
            batches = self._fixed_batches(store, groups, epoch)
            for done, (indices, features) in enumerate(batches, 1):
                labels.put(indices, _nearest(features, self.centroids))
                yield done * config.batch_size
        finally:
            encoder.load_state_dict(present)
        self.labels = labels

    def _require_places(self) -> None:
        """Raises InputError where batch normalisation would refuse a batch; the other methods always have two views."""
        config = self.config
        single = self.views * config.batch_size == 1 and config.image_size <= STRIDE
        norms = (module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d))
        if single and any(norm.training for norm in norms):
            raise InputError(
                f"{config.method}: a batch of 1 image of {config.image_size} pixels leaves 1 place in the last stage, "
                "too few for batch normalisation; give 2 images or more, or a larger --image-size"
            )

    def _require_sound(
        self, checks: Sequence[Tensor], store: ImageStore, groups: EpochBatches, epoch: int
    ) -> None:
        """Of all batches so far: on a GPU each look at a result waits for all work before it. Raises NumericError.

        All processes raise it, for the first batch that is unsound in any.
        """
        sound = [*torch.stack(list(checks)).tolist(), False]
        (place,) = self.group.largest([-sound.index(False)])
        if -place < len(checks):
            self.group.by_first(lambda: self._refuse(store, groups, epoch, -place))

    def _refuse(self, store: ImageStore, groups: EpochBatches, epoch: int, place: int) -> NoReturn:
        raise diverged(
            "features are not finite, too large or all the same where pixels are clustered",
            epoch * len(groups) + 1,
            [store.manifest.names[index] for index in groups[place]],
        )

    def objective(self, images: Tensor, indices: Sequence[int], epoch: int) -> Objective:
        """½ within + ½ across views, each the mean of two cross-entropies; for MDC that of view 1.

        Views agree on a pixel where view 1's centroids give both the same cluster. MDC has no second view: there the
        pixel's present cluster is compared with its pseudo-label.
        """
        assert self.epoch == epoch, "prepare the epoch first"
        balance = self.config.balance
        features = self._features(images, indices, epoch)
        units = unit_features(features).chunk(self.views)
        assert self.labels is not None, "prepare the epoch first"
        stored = self.labels.of(indices)
        labels = stored.to(self.device, torch.int64, non_blocking=True).unbind(1)
        own = [centroid_logits(*pair) for pair in zip(units, self.centroids, strict=True)]
        pairs = zip(own, labels, strict=True)
        losses = [pseudo_label_loss(z, y, balance, self.group) for z, y in pairs]
        total = within = torch.stack(losses).mean()
        parts = {"within": within.detach()}
        others = labels[0]
        if self.views == 2:
            of_1 = centroid_logits(units[1], self.centroids[0])
            of_2 = centroid_logits(units[0], self.centroids[1])
            across = 0.5 * (
                pseudo_label_loss(of_2, labels[1], balance, self.group)
                + pseudo_label_loss(of_1, labels[0], balance, self.group)
            )
            total = 0.5 * within + 0.5 * across
            parts["across"] = across.detach()
            others = of_1.argmax(1)
        agreement = (own[0].argmax(1) == others).float().mean()
        histogram = label_counts(labels[0], self.config.clusters)
        sound = sound_features(features)
        return Objective(total, parts, agreement, histogram, sound=sound)

    def state(self) -> dict[str, Tensor]:
        """Centroids, their counts, the epoch of the last preparation and its first weights; nothing before that.

        Pseudo-labels, of which each process has its own, follow from them.
        """
        if self.epoch is None:
            return {}
        tensors = {"epoch": torch.tensor(self.epoch)}
        tensors |= {f"{_START}{name}": value for name, value in self.start.items()}
        for view, known in enumerate(self.centroids, 1):
            tensors |= {f"centroids_{view}": known.centres, f"counts_{view}": known.counts}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned for the same images and settings."""
        found = {name: value.to(self.device) for name, value in tensors.items()}
        start = {
            name.removeprefix(_START): value
            for name, value in found.items()
            if name.startswith(_START)
        }
        # Earlier versions kept pseudo-labels instead; the epoch is then prepared anew.
        if not start:
            return
        self.epoch, self.start, self.labels = int(tensors["epoch"]), start, None
        self.centroids = tuple(
            Centroids(found[f"centroids_{view}"], found[f"counts_{view}"])
            for view in range(1, self.views + 1)
        )

    def _no_labels(self, store: ImageStore, groups: EpochBatches) -> PseudoLabels:
        own = groups.part(self.group.shard)
        return PseudoLabels(len(store), own, self.config.clusters)

    def _fixed_batches(
        self, store: ImageStore, groups: EpochBatches, epoch: int
    ) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Positions and fixed features of this process's part of every batch."""
        own = groups.part(self.group.shard)
        for batch in store.batches(own):
            yield batch.indices, self._fixed_features(batch.images, batch.indices, epoch)

    def _features(self, images: Tensor, indices: Sequence[int], epoch: int) -> Tensor:
        """Features of the replayed views, (V·B, C, h, h), view 1 first."""
        seed, round_ = self.config.seed, self.config.round(epoch)
        exact = self.config.exact()
        if self.views == 2:
            views = view_pair(images, indices, seed=seed, round_=round_, exact=exact)
            return self.network.paired_features(views)
        view = first_view(images, indices, seed=seed, round_=round_, exact=exact)
        features: Tensor = self.network.encoder(view)
        return features

    @torch.no_grad()
    def _fixed_features(self, images: Tensor, indices: Sequence[int], epoch: int) -> Tensor:
        """The same without gradients and without updating running statistics, for images in main memory."""
        images = images.to(self.device, non_blocking=True)
        with autocast(self.device, self.precision), running_statistics_kept(self.network):
            return self._features(images, indices, epoch)

    def _cluster(self, collected: BatchFeatures, view: int, epoch: int) -> Centroids:
        """k-means of the same number of a view's pixels of every image, then one mini-batch update with each batch."""
        config = self.config
        share = math.ceil(SAMPLE / (len(collected) * config.batch_size))
        before = self.group.shard.part(config.batch_size).start
        sample: list[Part] = []
        for number, (indices, features) in enumerate(collected):
            images = zip(indices, features.chunk(self.views)[view], strict=True)
            for place, (index, image) in enumerate(images, number * config.batch_size + before):
                points = image.flatten(1).T
                draw = generator(config.seed, Stream.PIXELS, epoch, index, 1 + view)
                chosen = torch.from_numpy(draw.permutation(len(points))[:share])
                sample.append((place, unit_features(points[chosen.to(points.device)]).cpu()))
        fit = sampled_kmeans(sample, config.clusters, seed=config.seed, group=self.group)
        device = exact_device(self.device)
        fit = Centroids(fit.centres.to(device), fit.counts.to(device))
        for _, features in collected:
            points = features.chunk(self.views)[view].permute(0, 2, 3, 1).flatten(0, 2)
            fit = refine(fit, unit_features(points).to(device), group=self.group)
        return Centroids(fit.centres.to(self.device), fit.counts.to(self.device))


class PseudoLabels:
    """Clusters of the pixels of this process's images of an epoch, (n, V, h, h) in the processor's memory."""

    def __init__(self, images: int, own: EpochBatches, clusters: int) -> None:
        self._row = torch.full((images,), -1, dtype=torch.int32)
        """By an image's position in the store."""
        size = 0
        for batch in own:
            self._row[list(batch)] = torch.arange(size, size + len(batch), dtype=torch.int32)
            size += len(batch)
        self._size = size
        self.rows = torch.empty(0, dtype=torch.uint8 if clusters <= 256 else torch.int16)

    def put(self, indices: Sequence[int], labels: Tensor) -> None:
        """Keep the labels (B, V, h, h) of some images."""
        if not len(self.rows):
            self.rows = self.rows.new_zeros((self._size, *labels.shape[1:]))
        self.rows[self._row[list(indices)].long()] = labels.to(self.rows)

    def of(self, indices: Sequence[int]) -> Tensor:
        """The labels (B, V, h, h) of some images."""
        rows = self._row[list(indices)].long()
        assert bool((rows >= 0).all()), "images of this process's part of a batch of this epoch"
        return self.rows[rows]


def centroid_logits(units: Tensor, centroids: Centroids) -> Tensor:
    """-|f - c|² + |f|² of every pixel f and centre c: unit features (B, C, h, h) → logits (B, K, h, h) in float32."""
    # Autocast would round distances to three digits, which changes clusters.
    with torch.autocast(units.device.type, enabled=False):
        return F.conv2d(units, *centroids.classifier())


@contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """In this block batch normalisation uses the batch's statistics and leaves its running ones as they are."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _nearest(features: Tensor, centroids: Sequence[Centroids]) -> Tensor:
    """Nearest own centre of every pixel of V views (V·B, C, h, h) → (B, V, h, h)."""
    views = features.chunk(len(centroids))
    nearest = [
        centroid_logits(unit_features(part), known).argmax(1)
        for part, known in zip(views, centroids, strict=True)
    ]
    return torch.stack(nearest, 1)
