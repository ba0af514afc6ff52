"""The objective of pre-training: SimSiam of whole images, PixSim and RegionSim of corresponding places.

Axes: B images, N places of a view, C channels, K pseudo categories, S stored side.

Which places correspond is `correspondence`'s business; the losses here know nothing of it (METHOD, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densesiam_seg.config import PretrainConfig
from densesiam_seg.methods.correspondence import STRATEGIES, Correspondence, used
from densesiam_seg.methods.interface import Objective, Stateless, image_loss, region_term, spread
from densesiam_seg.methods.losses import linked_loss, region_embeddings
from densesiam_seg.methods.sampling import Grid, grid_draws, pool
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.views.pair import WindowPair, independent_views


class Pretext(Stateless):
    """Pre-training on independently drawn views; `aspects` (images,) are the images' widths over heights."""

    def __init__(self, network: DenseSiam, config: PretrainConfig, aspects: Tensor) -> None:
        self.network = network
        self.config = config
        self.aspects = aspects
        self.grid = Grid(
            config.sampling,
            config.grid,
            config.oversample,
            config.importance,
        )

    def objective(self, images: Tensor, indices: Sequence[int], epoch: int) -> Objective:
        """Losses of one batch of stretched images."""
        config = self.config
        views = independent_views(
            images,
            indices,
            self.aspects[list(indices)],
            seed=config.seed,
            round_=epoch,
            exact=config.exact(),
        )
        draws = grid_draws(self.grid, config.seed, epoch, indices, images.device)
        return pretext_objective(self.network, views, config, self.grid, draws)


def pretext_objective(
    network: DenseSiam, views: WindowPair, config: PretrainConfig, grid: Grid, draws: Tensor
) -> Objective:
    """Losses of one pair of views. A loss whose weight is 0 is not computed."""
    features = network.encoder(torch.cat((views.image_1, views.image_2)))
    terms: list[tuple[str, float, Tensor]] = []
    agreement = torch.zeros((), device=features.device)
    histogram = torch.zeros(0, dtype=torch.int64, device=features.device)
    disjoint, dispersion = 0, None

    if config.image_weight:
        loss, agreement, dispersion = image_loss(network, features)
        terms.append(("image", config.image_weight, loss))
    if config.dense():
        features_1, features_2 = features.chunk(2)
        places = STRATEGIES[config.correspondence](
            views.window_1, views.window_2, features_1.detach(), features_2.detach(), grid, draws
        )
        samples = torch.cat((pool(features_1, places.places_1), pool(features_2, places.places_2)))
        # One location's head sees one location alone, so the heads run on the samples and not on the whole map.
        z = _rows(network.projector, samples)
        terms += _dense_terms(network, samples, z, places, config)
        with torch.no_grad():
            agreement, histogram = _health(z, places, config.categories)
            dispersion = spread(z.flatten(0, 1)) if dispersion is None else dispersion
            disjoint = int((~places.linked).sum())

    total = sum((weight * loss for _, weight, loss in terms), features.new_zeros(()).float())
    parts = {name: loss.detach() for name, _, loss in terms}
    return Objective(total, parts, agreement, histogram, disjoint, dispersion)


def _dense_terms(
    network: DenseSiam,
    samples: Tensor,
    z: Tensor,
    places: Correspondence,
    config: PretrainConfig,
) -> list[tuple[str, float, Tensor]]:
    """Name, weight and value of the losses of sampled places (2B, N, C) with projections z (2B, N, K)."""
    terms: list[tuple[str, float, Tensor]] = []
    if config.pixel_weight:
        z_1, z_2 = z.chunk(2)
        p_1, p_2 = _rows(network.predictor, z).chunk(2)
        loss = linked_loss(p_1, z_1, p_2, z_2, places.weight, config.similarity)
        terms.append(("pixel", config.pixel_weight, loss))
    if config.region_weight and bool(places.linked.any()):
        linked = places.linked.repeat(2)
        shown = torch.cat(used(places))[linked]
        embeddings = region_embeddings(
            z[linked].mT.unsqueeze(-1), samples[linked].mT.unsqueeze(-1), shown.unsqueeze(-1)
        )
        loss = region_term(network, embeddings, stop_gradient=config.region_stop_gradient)
        terms.append(("region", config.region_weight, loss))
    return terms


def _rows(head: torch.nn.Module, rows: Tensor) -> Tensor:
    """A head of 1×1 convolutions on rows: (B, N, C) → (B, N, K)."""
    # Places lie along the width. As a column, of width 1, the gradient's memory layout is ambiguous, and a processor's
    # batch norm reads it in the wrong order (torch 2.15).
    outputs: Tensor = head(rows.mT.unsqueeze(-2)).squeeze(-2).mT
    return outputs


def _health(z: Tensor, places: Correspondence, categories: int) -> tuple[Tensor, Tensor]:
    """Share of the links whose ends have one pseudo category, and how often each category occurs."""
    winners_1, winners_2 = z.argmax(-1).chunk(2)
    same = winners_1.unsqueeze(2) == winners_2.unsqueeze(1)
    weight = places.weight
    agreement = (weight * same).sum() / weight.sum().clamp(min=1e-12)
    return agreement, torch.bincount(
        torch.cat((winners_1, winners_2)).flatten(), minlength=categories
    )
