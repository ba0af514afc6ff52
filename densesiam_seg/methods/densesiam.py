"""DenseSiam's objective for segmentation, and its ablations: which losses are computed, and their weights.

Axes: B images, K clusters, C channels, h feature side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from densesiam_seg.config import TrainConfig
from densesiam_seg.images.store import Batch, ImageStore
from densesiam_seg.io.devices import compiled
from densesiam_seg.methods import fused_losses as fused
from densesiam_seg.methods.compiled import (
    PixelForm,
    Pixels,
    pixel_losses,
    try_colour,
    try_pixels,
)
from densesiam_seg.methods.losses import (
    image_loss,
    label_counts,
    pixel_loss,
    pixel_weights,
    prior_loss,
    pseudo_label_loss,
    region_embeddings,
    region_loss,
)
from densesiam_seg.methods.method import Method, Objective, Terms, sound_features, weighted
from densesiam_seg.methods.mixture_prior import fit_mixture, prior_shares
from densesiam_seg.methods.stage_cache import StageCache
from densesiam_seg.network.model import SHARPNESS, DenseSiam, matched
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.views.pair import Colour, ViewPair, view_pair
from densesiam_seg.views.parameters import sample_geometry
from densesiam_seg.views.photometric import changed


@dataclass(frozen=True)
class Seen:
    """What the objective sees of a batch: stored images, uint8 (B, 3, S, S), and their two views."""

    images: Tensor
    views: ViewPair


class DenseSiamMethod(Method):
    """DenseSiam on replayed views; SimSiam and PixSim are the same with losses switched off."""

    def __init__(self, network: DenseSiam, config: TrainConfig, *, group: Group = ALONE) -> None:
        self.network = network
        self.config = config
        self.group = group
        self.stage_cache: StageCache | None = None
        """A frozen backbone's stages of all views, once they are written to the disk."""
        self.pixels: PixelForm | None = None
        """The pixel losses as the compiler made them; None: as here."""
        self.colour: Colour = changed

    def batches(
        self, store: ImageStore, groups: Sequence[tuple[int, ...]], *, pinned: bool
    ) -> Iterator[Batch]:
        """Stored images, or the cached stages of their views."""
        return (self.stage_cache or store).batches(groups, pinned=pinned)

    def prepare(self, store: ImageStore, epoch: int) -> Iterator[int]:
        """Before the first epoch the mixture is fitted; the network's state keeps it."""
        if epoch == 0 and self.network.mixture is not None:
            yield from fit_mixture(self.network, store, self.config.seed, group=self.group)

    def compilable(self) -> bool:
        """Where there are pixel heads."""
        return self.config.uses_pixels()

    def compile(self, batch_size: int) -> None:
        """The heads with their pixel losses, and the colour changes of the views."""
        config = self.config
        pixels, colour = compiled(pixel_losses), compiled(changed)
        try_pixels(pixels, self.network, config, batch_size)
        if self.stage_cache is None:
            try_colour(colour, self.network, config, batch_size)
        self.pixels, self.colour = pixels, colour

    def drawn(self, images: Tensor, indices: Sequence[int], epoch: int) -> Seen | Tensor:
        """The views of a batch; cached stages are those of views already."""
        if self.stage_cache:
            return images
        config = self.config
        seed, round_, exact = config.seed, config.round(epoch), config.exact()
        views = view_pair(
            images, indices, seed=seed, round_=round_, exact=exact, colour=self.colour
        )
        return Seen(images, views)

    def objective(self, drawn: Seen | Tensor, indices: Sequence[int], epoch: int) -> Objective:
        """Losses of one of those batches; the region loss joins in the last epochs."""
        config, network, prior = self.config, self.network, None
        if isinstance(drawn, Tensor):
            assert self.stage_cache is not None
            geometry = sample_geometry(config.seed, config.round(epoch), indices).to(drawn.device)
            features = matched(network.encoder.dense(self.stage_cache.stages(drawn)), geometry)
        else:
            features = network.paired_features(drawn.views)
            if config.follows_prior():
                geometry = drawn.views.geometry
                prior = prior_shares(network, drawn.images, geometry, features.shape[-1])
        return objective(
            network,
            features,
            config,
            regions=epoch >= config.region_epoch(),
            prior=prior,
            group=self.group,
            pixels=self.pixels,
        )


def objective(
    network: DenseSiam,
    features: Tensor,
    config: TrainConfig,
    *,
    regions: bool,
    prior: Tensor | None = None,
    group: Group = ALONE,
    pixels: PixelForm | None = None,
) -> Objective:
    """Losses of both views' features in exact correspondence (2B, C, h, h), view 1 first (section 3).

    `prior` (B, K, h, h): the mixture's posteriors of the clusters at the same places. A loss whose weight is 0 is not
    computed. `pixels` computes the losses of pixels, where not as here.
    """
    terms: Terms = {}
    agreement, spread = torch.zeros((), device=features.device), None
    histogram = torch.zeros(0, dtype=torch.int64, device=features.device)
    if config.image_weight:
        loss, agreement, spread = image_loss(network, features, group)
        terms["image"] = config.image_weight, loss
    if config.uses_pixels():
        if pixels is None:
            found = _pixel_losses(network, features, config, prior, group)
        else:
            # In halves they lie so already; another layout would be another graph.
            maps = features.contiguous(memory_format=torch.channels_last)
            found = pixels(network, maps, config, prior)
            if prior is not None:
                network.update_mean_shares(found.z.detach(), group)
        agreement, histogram = found.agreement, found.histogram
        weights = _weights(config)
        terms |= {name: (weights[name], loss) for name, loss in found.losses.items()}
        if regions and config.region_weight:
            embed = region_embeddings if config.exact() else fused.region_embeddings
            loss = region_loss(network, embed(found.z, features), config.region_stop_gradient)
            terms["region"] = config.region_weight, loss
    sound = sound_features(features)
    return Objective(*weighted(terms), agreement, histogram, spread=spread, sound=sound)


def _weights(config: TrainConfig) -> dict[str, float]:
    """Of each loss of pixels."""
    weight_k, weight_a = pixel_weights(config.clusters, config.over_clusters)
    return {
        "prior": 1.0,
        "pixel": config.pixel_weight * weight_k,
        "over_cluster": config.over_cluster_weight * weight_a,
        "segmentation": config.segmentation_weight,
    }


def _pixel_losses(
    network: DenseSiam, features: Tensor, config: TrainConfig, prior: Tensor | None, group: Group
) -> Pixels:
    """The pixel heads' outputs and losses, each head for itself."""
    losses: dict[str, Tensor] = {}
    z = network.projector(features)
    with torch.no_grad():
        winners = _winners(z, config)
        winners_1, winners_2 = winners.chunk(2)
        agreement = (winners_1 == winners_2).float().mean()
        histogram = label_counts(winners, config.clusters)
    if prior is not None:
        network.update_mean_shares(z, group)
        losses["prior"] = prior_loss(SHARPNESS * z, torch.cat((prior, prior)))
    # Before any other loss: the order of use decides the order in which the gradients of z are added up.
    views = z.chunk(2)
    if config.pixel_weight:
        losses["pixel"] = _siamese_loss(z, nn.Identity(), network.predictor, config, group)
    if config.over_cluster_weight:
        assert network.over_projector is not None and network.over_predictor is not None
        heads = network.over_projector, network.over_predictor
        losses["over_cluster"] = _siamese_loss(features, *heads, config, group)
    if config.segmentation_weight:
        losses["segmentation"] = _segmentation_loss(views, winners, config, group)
    return Pixels(z, agreement, histogram, losses)


def _siamese_loss(
    maps: Tensor, projector: nn.Module, predictor: nn.Module, config: TrainConfig, group: Group
) -> Tensor:
    """PixSim of the projections of maps (2B, C, h, w)."""

    def compute(maps: Tensor) -> Tensor:
        z = projector(maps)
        p = predictor(z)
        if config.exact() or config.similarity == "cosine":
            return pixel_loss(p, z, config.similarity)
        return fused.siamese_loss(p, z)

    if config.exact():
        return compute(maps)
    # As in `training.loop`: parts of a batch count by their numbers of images.
    weight = 1.0 if group.alone else len(maps) / 2 * group.count / config.batch_size
    return fused.with_immediate_gradient(compute, maps, predictor, projector, weight=weight)


def _segmentation_loss(
    views: Sequence[Tensor], winners: Tensor, config: TrainConfig, group: Group
) -> Tensor:
    """½ of each view's cross-entropy with its own argmax: two projections (B, K, h, w), `winners` (2B, h, w)."""
    if config.exact():
        losses = [pseudo_label_loss(view, balance=config.balance, group=group) for view in views]
    else:
        losses = [
            pseudo_label_loss(fused.rows(view), labels.flatten(), config.balance, group)
            for view, labels in zip(views, winners.chunk(2), strict=True)
        ]
    return 0.5 * (losses[0] + losses[1])


def _winners(z: Tensor, config: TrainConfig) -> Tensor:
    """The cluster of each pixel, (2B, h, w)."""
    if config.exact():
        return z.argmax(1)
    images, _, height, width = z.shape
    return fused.rows(z).max(1).indices.view(images, height, width)
