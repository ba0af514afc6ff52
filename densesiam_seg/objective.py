"""DenseSiam's objective for segmentation, and its ablations: the one place where weights meet losses.

Axes: B images, K clusters, C channels, h feature side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densesiam_seg.config import TrainConfig
from densesiam_seg.losses import (
    pixel_loss,
    pixel_weights,
    region_embeddings,
    segmentation_loss,
)
from densesiam_seg.method import Objective, Stateless, image_loss, region_term
from densesiam_seg.model import DenseSiam
from densesiam_seg.views import ViewPair, view_pair


class Siamese(Stateless):
    """DenseSiam on replayed views; SimSiam and PixSim are the same with losses switched off."""

    def __init__(self, network: DenseSiam, config: TrainConfig) -> None:
        self.network = network
        self.config = config

    def objective(self, images: Tensor, indices: Sequence[int], epoch: int) -> Objective:
        """Losses of one batch of stored images; the region loss joins in the last epochs."""
        config = self.config
        views = view_pair(images, indices, seed=config.seed, round_=config.round(epoch))
        return objective(self.network, views, config, regions=epoch >= config.region_epoch())


def objective(
    network: DenseSiam, views: ViewPair, config: TrainConfig, *, regions: bool
) -> Objective:
    """Losses of one pair of views (METHOD, section 2). A loss whose weight is 0 is not computed."""
    features = network.paired_features(views)
    terms: list[tuple[str, float, Tensor]] = []
    agreement, dispersion = torch.zeros((), device=features.device), None
    histogram = torch.zeros(0, dtype=torch.int64, device=features.device)

    if config.image_weight:
        loss, agreement, dispersion = image_loss(network, features)
        terms.append(("image", config.image_weight, loss))
    if config.uses_pixels():
        z = network.projector(features)
        terms += _pixel_terms(network, features, z, config, regions=regions)
        with torch.no_grad():
            winners = z.argmax(1)
            winners_1, winners_2 = winners.chunk(2)
            agreement = (winners_1 == winners_2).float().mean()
            histogram = torch.bincount(winners.flatten(), minlength=config.clusters)

    total = sum((weight * loss for _, weight, loss in terms), features.new_zeros(()).float())
    parts = {name: loss.detach() for name, _, loss in terms}
    return Objective(total, parts, agreement, histogram, spread=dispersion)


def _pixel_terms(
    network: DenseSiam, features: Tensor, z: Tensor, config: TrainConfig, *, regions: bool
) -> list[tuple[str, float, Tensor]]:
    """Name, weight and value of each loss of pixels or regions."""
    z_1, z_2 = z.chunk(2)
    weight_k, weight_a = pixel_weights(config.clusters, config.over_clusters)
    terms: list[tuple[str, float, Tensor]] = []
    if config.pixel_weight:
        p_1, p_2 = network.predictor(z).chunk(2)
        loss = pixel_loss(p_1, z_1, p_2, z_2, config.similarity)
        terms.append(("pixel", config.pixel_weight * weight_k, loss))
    if config.over_cluster_weight:
        assert network.over_projector is not None and network.over_predictor is not None
        y = network.over_projector(features)
        (y_1, y_2), (o_1, o_2) = y.chunk(2), network.over_predictor(y).chunk(2)
        loss = pixel_loss(o_1, y_1, o_2, y_2, config.similarity)
        terms.append(("over_cluster", config.over_cluster_weight * weight_a, loss))
    if config.segmentation_weight:
        loss = 0.5 * (
            segmentation_loss(z_1, config.balance) + segmentation_loss(z_2, config.balance)
        )
        terms.append(("segmentation", config.segmentation_weight, loss))
    if regions and config.region_weight:
        embeddings = region_embeddings(z, features)
        loss = region_term(network, embeddings, stop_gradient=config.region_stop_gradient)
        terms.append(("region", config.region_weight, loss))
    return terms
