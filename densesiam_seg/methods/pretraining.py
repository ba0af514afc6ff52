"""The objective of pre-training: SimSiam of whole images, PixSim and RegionSim of corresponding places.

Axes: B images, N places of a view, C channels, K pseudo categories.

`correspondence` decides which places correspond; the losses here only use its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from densesiam_seg.config import PretrainConfig
from densesiam_seg.methods.correspondence import STRATEGIES, Correspondence
from densesiam_seg.methods.losses import (
    image_loss,
    label_counts,
    linked_loss,
    region_embeddings,
    region_loss,
    spread,
)
from densesiam_seg.methods.method import Method, Objective, Terms, sound_features, weighted
from densesiam_seg.methods.sampling import grid_draws, pool
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.views.pair import IndependentPair, independent_views


@dataclass(frozen=True)
class SeenPair:
    """What the objective sees of a batch: two views of each image, and the sampler's random positions."""

    views: IndependentPair
    draws: Tensor


class Pretext(Method):
    """Pre-training on independently drawn views; `aspects` (images,) are the images' widths over heights."""

    def __init__(
        self,
        network: DenseSiam,
        config: PretrainConfig,
        aspects: Tensor,
        *,
        group: Group = ALONE,
    ) -> None:
        self.network = network
        self.config = config
        self.group = group
        self.aspects = aspects

    def drawn(self, images: Tensor, indices: Sequence[int], epoch: int) -> SeenPair:
        """The views of a batch of stretched images."""
        config, aspects = self.config, self.aspects[list(indices)]
        views = independent_views(
            images, indices, aspects, seed=config.seed, round_=epoch, exact=config.exact()
        )
        return SeenPair(views, grid_draws(config, epoch, indices, images.device))

    def objective(self, drawn: SeenPair, indices: Sequence[int], epoch: int) -> Objective:
        """Losses of one batch."""
        return pretext_objective(self.network, drawn.views, self.config, drawn.draws, self.group)


def pretext_objective(
    network: DenseSiam,
    views: IndependentPair,
    config: PretrainConfig,
    draws: Tensor,
    group: Group = ALONE,
) -> Objective:
    """Losses of one pair of views. A loss whose weight is 0 is not computed."""
    features = network.encoder(torch.cat((views.image_1, views.image_2)))
    terms: Terms = {}
    agreement, dispersion = torch.zeros((), device=features.device), None
    histogram = torch.zeros(0, dtype=torch.int64, device=features.device)
    disjoint = 0
    if config.image_weight:
        loss, agreement, dispersion = image_loss(network, features, group)
        terms["image"] = config.image_weight, loss
    if config.dense():
        maps_1, maps_2 = features.chunk(2)
        crops, maps = (views.geometry_1, views.geometry_2), (maps_1.detach(), maps_2.detach())
        places = STRATEGIES[config.correspondence](crops, maps, config, draws)
        samples = torch.cat((pool(maps_1, places.places_1), pool(maps_2, places.places_2)))
        # The heads are 1×1 convolutions, so they run on the samples instead of the whole map.
        z = _rows(network.projector, samples)
        linked_here = places.linked.sum()
        linked_images = _expected(linked_here, len(places.linked), group)
        if config.pixel_weight:
            p = _rows(network.predictor, z)
            loss = linked_loss(p, z, places.weight, config.similarity, linked_images)
            terms["pixel"] = config.pixel_weight, loss
        # Where any process has such images all take part, as they share statistics.
        if config.region_weight and bool(linked_images):
            linked = places.linked.repeat(2)
            # Places are the pixels of a map of width 1.
            parts = (z[linked].mT, samples[linked].mT, places.used[linked])
            embeddings = region_embeddings(*(part.unsqueeze(-1) for part in parts))
            loss = region_loss(network, embeddings, config.region_stop_gradient)
            terms["region"] = config.region_weight, loss * (linked_here / linked_images)
        with torch.no_grad():
            agreement, histogram = _health(z, places, config.categories)
            dispersion = spread(z.flatten(0, 1), group) if dispersion is None else dispersion
            disjoint = int((~places.linked).sum())
    sound = sound_features(features)
    return Objective(*weighted(terms), agreement, histogram, disjoint, dispersion, sound)


def _expected(linked: Tensor, images: int, group: Group) -> Tensor:
    """How many of a part's images would be `linked` if it had the batch's share of them.

    Only linked images count in a loss, and parts are weighed by all of their images.
    """
    return linked if group.alone else images * group.mean(linked / images, images)


def _rows(head: nn.Module, rows: Tensor) -> Tensor:
    """A head of 1×1 convolutions on rows: (B, N, C) → (B, N, K)."""
    # Places lie along the width. As a column, of width 1, the gradient's memory layout is ambiguous, and a processor's
    # batch norm reads it in the wrong order (torch 2.15).
    outputs: Tensor = head(rows.mT.unsqueeze(-2)).squeeze(-2).mT
    return outputs


def _health(z: Tensor, places: Correspondence, categories: int) -> tuple[Tensor, Tensor]:
    """Share of the links whose ends have one pseudo category, and how often each category occurs."""
    winners = z.argmax(-1)
    winners_1, winners_2 = winners.chunk(2)
    same = winners_1.unsqueeze(2) == winners_2.unsqueeze(1)
    agreement = (places.weight * same).sum() / places.weight.sum().clamp(min=1e-12)
    return agreement, label_counts(winners, categories)
