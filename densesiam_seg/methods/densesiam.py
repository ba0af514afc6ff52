"""DenseSiam's objective for segmentation, and its ablations: the one place where weights meet losses.

Axes: B images, K clusters, C channels, h feature side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from densesiam_seg.config import TrainConfig
from densesiam_seg.images.store import Batch, ImageStore
from densesiam_seg.methods import fused_losses as fused
from densesiam_seg.methods.feature_cache import StageCache
from densesiam_seg.methods.interface import Objective, Stateless, image_loss, region_term
from densesiam_seg.methods.losses import (
    label_counts,
    pixel_loss,
    pixel_weights,
    prior_loss,
    pseudo_label_loss,
    region_embeddings,
    segmentation_loss,
)
from densesiam_seg.methods.mixture_prior import fit_mixture, prior_shares
from densesiam_seg.network.model import SHARPNESS, DenseSiam, matched
from densesiam_seg.views.pair import ViewPair, view_pair
from densesiam_seg.views.parameters import sample_geometry


class Siamese(Stateless):
    """DenseSiam on replayed views; SimSiam and PixSim are the same with losses switched off."""

    def __init__(self, network: DenseSiam, config: TrainConfig) -> None:
        self.network = network
        self.config = config
        self.kept: StageCache | None = None
        """Where a frozen backbone's stages of all views lie, once they were written."""

    def batches(
        self, store: ImageStore, groups: Sequence[tuple[int, ...]], *, pinned: bool
    ) -> Iterator[Batch]:
        """Stored images, or what is kept of their views."""
        return (self.kept or store).batches(groups, pinned=pinned)

    def objective(self, images: Tensor, indices: Sequence[int], epoch: int) -> Objective:
        """Losses of one of those batches; the region loss joins in the last epochs."""
        config, network = self.config, self.network
        round_, regions = config.round(epoch), epoch >= config.region_epoch()
        if self.kept:
            geometry = sample_geometry(config.seed, round_, indices).to(images.device)
            features = matched(network.encoder.dense(self.kept.stages(images)), geometry)
            return objective_of(network, features, config, regions=regions)
        views = view_pair(images, indices, seed=config.seed, round_=round_, exact=config.exact())
        if not config.follows_prior():
            return objective(network, views, config, regions=regions)
        features = network.paired_features(views)
        prior = prior_shares(network, images, views.geometry, features.shape[-1])
        return objective_of(network, features, config, regions=regions, prior=prior)

    def prepare(self, store: ImageStore, epoch: int) -> Iterator[int]:
        """Before the first epoch the mixture is fitted; the network's state keeps it."""
        if epoch == 0 and self.network.mixture is not None:
            yield from fit_mixture(self.network, store, self.config.seed)


def objective(
    network: DenseSiam, views: ViewPair, config: TrainConfig, *, regions: bool
) -> Objective:
    """Losses of one pair of views (METHOD, section 2). A loss whose weight is 0 is not computed."""
    return objective_of(network, network.paired_features(views), config, regions=regions)


def objective_of(
    network: DenseSiam,
    features: Tensor,
    config: TrainConfig,
    *,
    regions: bool,
    prior: Tensor | None = None,
) -> Objective:
    """The same, given the features of both views in exact correspondence (2B, C, h, h), view 1 first.

    `prior` (B, K, h, h) are the shares that a mixture gives the clusters at the same places.
    """
    terms: list[tuple[str, float, Tensor]] = []
    agreement, dispersion = torch.zeros((), device=features.device), None
    histogram = torch.zeros(0, dtype=torch.int64, device=features.device)

    if config.image_weight:
        loss, agreement, dispersion = image_loss(network, features)
        terms.append(("image", config.image_weight, loss))
    if config.uses_pixels():
        z = network.projector(features)
        with torch.no_grad():
            winners = _winners(z, config)
            winners_1, winners_2 = winners.chunk(2)
            agreement = (winners_1 == winners_2).float().mean()
            histogram = label_counts(winners, config.clusters)
        if prior is not None:
            network.count(z)
            loss = prior_loss(SHARPNESS * z, torch.cat((prior, prior)))
            terms.append(("prior", 1.0, loss))
        terms += _pixel_terms(network, features, z, winners, config, regions=regions)

    total = sum((weight * loss for _, weight, loss in terms), features.new_zeros(()).float())
    parts = {name: loss.detach() for name, _, loss in terms}
    return Objective(total, parts, agreement, histogram, spread=dispersion)


def _pixel_terms(
    network: DenseSiam,
    features: Tensor,
    z: Tensor,
    winners: Tensor,
    config: TrainConfig,
    *,
    regions: bool,
) -> list[tuple[str, float, Tensor]]:
    """Name, weight and value of each loss of pixels or regions."""
    # Before anything else is computed from z: the order of these decides in which order its gradients are added up.
    views = z.chunk(2)
    weight_k, weight_a = pixel_weights(config.clusters, config.over_clusters)
    terms: list[tuple[str, float, Tensor]] = []
    if config.pixel_weight:
        loss = _siamese_loss(network.predictor, z, config)
        terms.append(("pixel", config.pixel_weight * weight_k, loss))
    if config.over_cluster_weight:
        assert network.over_projector is not None and network.over_predictor is not None
        loss = _siamese_loss(network.over_predictor, features, config, network.over_projector)
        terms.append(("over_cluster", config.over_cluster_weight * weight_a, loss))
    if config.segmentation_weight:
        loss = _segmentation_loss(views, winners, config)
        terms.append(("segmentation", config.segmentation_weight, loss))
    if regions and config.region_weight:
        pool = region_embeddings if config.exact() else fused.region_embeddings
        loss = region_term(network, pool(z, features), stop_gradient=config.region_stop_gradient)
        terms.append(("region", config.region_weight, loss))
    return terms


def _siamese_loss(
    predictor: nn.Module, maps: Tensor, config: TrainConfig, projector: nn.Module | None = None
) -> Tensor:
    """PixSim of projections (2B, K, h, w), or of features that `projector` turns into them."""

    def compute(maps: Tensor) -> Tensor:
        z = maps if projector is None else projector(maps)
        p = predictor(z)
        if config.exact() or config.similarity == "cosine":
            (p_1, p_2), (z_1, z_2) = p.chunk(2), z.chunk(2)
            return pixel_loss(p_1, z_1, p_2, z_2, config.similarity)
        return fused.siamese_loss(p, z)

    if config.exact():
        return compute(maps)
    return fused.early(compute, maps, predictor, *([] if projector is None else [projector]))


def _segmentation_loss(views: Sequence[Tensor], winners: Tensor, config: TrainConfig) -> Tensor:
    """½ of each view's cross-entropy with its own argmax: two projections (B, K, h, w), `winners` (2B, h, w)."""
    if config.exact():
        losses = [segmentation_loss(view, config.balance) for view in views]
    else:
        losses = [
            pseudo_label_loss(fused.rows(view), labels.flatten(), config.balance)
            for view, labels in zip(views, winners.chunk(2), strict=True)
        ]
    return 0.5 * (losses[0] + losses[1])


def _winners(z: Tensor, config: TrainConfig) -> Tensor:
    """The cluster of each pixel, (B, h, w)."""
    if config.exact():
        return z.argmax(1)
    images, _, height, width = z.shape
    return fused.rows(z).max(1).indices.view(images, height, width)
