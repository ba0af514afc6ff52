"""The training objective: the one place where weights meet losses.

Axes: B images, K clusters, C channels, h feature side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from densesiam_seg.config import TrainConfig
from densesiam_seg.losses import (
    pixel_loss,
    pixel_weights,
    region_embeddings,
    region_loss,
    segmentation_loss,
)
from densesiam_seg.model import DenseSiam
from densesiam_seg.views import ViewPair


@dataclass(frozen=True)
class Objective:
    """The weighted sum to minimise, its parts before weighting, and two signs of health that need no labels."""

    total: Tensor
    parts: dict[str, Tensor]
    agreement: Tensor
    """Share of pixels that both views give the same cluster."""
    histogram: Tensor
    """Pixels per cluster over both views, (K,) int64."""


def objective(
    network: DenseSiam, views: ViewPair, config: TrainConfig, *, regions: bool
) -> Objective:
    """Losses of one pair of views (METHOD, section 2). A loss whose weight is 0 is not computed."""
    features = network.paired_features(views)
    z = network.projector(features)
    z_1, z_2 = z.chunk(2)
    weight_k, weight_a = pixel_weights(config.clusters, config.over_clusters)
    terms: list[tuple[str, float, Tensor]] = []

    if config.pixel_weight:
        p_1, p_2 = network.predictor(z).chunk(2)
        loss = pixel_loss(p_1, z_1, p_2, z_2, config.similarity)
        terms.append(("pixel", config.pixel_weight * weight_k, loss))
    if config.over_cluster_weight:
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
        terms.append(("region", config.region_weight, _region_loss(network, z, features, config)))

    total = sum((weight * loss for _, weight, loss in terms), z.new_zeros((), dtype=torch.float32))
    with torch.no_grad():
        winners = z.argmax(1)
        agreement = (winners[: len(z_1)] == winners[len(z_1) :]).float().mean()
        histogram = torch.bincount(winners.flatten(), minlength=config.clusters)
    parts = {name: loss.detach() for name, _, loss in terms}
    return Objective(total, parts, agreement, histogram)


def _region_loss(network: DenseSiam, z: Tensor, features: Tensor, config: TrainConfig) -> Tensor:
    embeddings = region_embeddings(z, features)
    u = network.region_projector(embeddings.flatten(0, 1))
    q = network.region_predictor(u)
    u_1, u_2 = u.view_as(embeddings).chunk(2)
    q_1, q_2 = q.view_as(embeddings).chunk(2)
    return region_loss(q_1, u_1, q_2, u_2, stop_gradient=config.region_stop_gradient)
