"""What the training loop asks of a method: the network, and the objective of one batch.

Axes: B images, K clusters, S stored side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.images.store import Batch, ImageStore
from densesiam_seg.methods.losses import pixel_loss, region_loss
from densesiam_seg.network.model import DenseSiam


@dataclass(frozen=True)
class Objective:
    """The weighted sum to minimise, its parts before weighting, and signs of health that need no labels."""

    total: Tensor
    parts: dict[str, Tensor]
    agreement: Tensor
    """Share of pixels (or of sampled pairs) that both views give the same cluster; of whole images, without any dense
    loss: share of those whose other view is the most similar one of the batch."""
    histogram: Tensor
    """Pixels per cluster over both views, (K,) int64; empty where nothing is clustered."""
    disjoint: int = 0
    """Images whose two views do not overlap."""
    spread: Tensor | None = None
    """Deviation of the L2-normalised projections times √dimensions: 1 is healthy, 0 collapsed (SimSiam, figure 2)."""


class Method(Protocol):
    """One way to learn from unlabelled images."""

    network: DenseSiam

    def prepare(self, store: ImageStore, epoch: int) -> Iterator[int]:
        """What an epoch needs before its first step; yields how many images are done."""
        ...

    def batches(
        self, store: ImageStore, groups: Sequence[tuple[int, ...]], *, pinned: bool
    ) -> Iterator[Batch]:
        """What `objective` takes, for each group of images' positions; on the processor."""
        ...

    def objective(self, images: Tensor, indices: Sequence[int], epoch: int) -> Objective:
        """The objective of one of those batches on the network's device; called under autocast."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold beside the network's."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        ...


class FromImages:
    """A method that learns from stored images, uint8 (B, 3, S, S)."""

    def batches(
        self, store: ImageStore, groups: Sequence[tuple[int, ...]], *, pinned: bool
    ) -> Iterator[Batch]:
        """The images themselves."""
        return store.batches(groups, pinned=pinned)


class Stateless(FromImages):
    """A method whose epochs need no preparation."""

    def prepare(self, store: ImageStore, epoch: int) -> Iterator[int]:
        """Nothing to do."""
        return iter(())

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to take over."""


def image_loss(network: DenseSiam, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SimSiam's loss of the pooled features of both views (2B, C, h, w), how far the views agree, and their spread.

    The loss is ½ D(p₁, z₂) + ½ D(p₂, z₁) in its cosine form; they agree in the share of images whose other view is the
    most similar one of the batch.
    """
    assert network.image_projector is not None and network.image_predictor is not None
    z = network.image_projector(features.float().mean((-2, -1)))
    p = network.image_predictor(z)
    (z_1, z_2), (p_1, p_2) = z.chunk(2), p.chunk(2)
    loss = pixel_loss(p_1, z_1, p_2, z_2, "cosine")
    # Autocast would round similarities to three digits, and the first of equal ones would win.
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        similarities = F.normalize(z_1.float(), dim=1) @ F.normalize(z_2.float(), dim=1).T
        own = torch.arange(len(z_1), device=z.device)
        agreement = (similarities.argmax(1) == own).float().mean()
    return loss, agreement, spread(p)


def region_term(network: DenseSiam, embeddings: Tensor, *, stop_gradient: bool) -> Tensor:
    """RegionSim through the network's region heads, for embeddings (2B, K, C) of both views, view 1 first."""
    u, q = network.region_outputs(embeddings)
    (u_1, u_2), (q_1, q_2) = u.chunk(2), q.chunk(2)
    return region_loss(q_1, u_1, q_2, u_2, stop_gradient=stop_gradient)


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """Deviation of L2-normalised rows (N, D) times √D, mean over D: 1 for directions all around, 0 for a single one."""
    deviation = F.normalize(z.float(), dim=1).std(0, unbiased=False).mean()
    return deviation * math.sqrt(z.shape[1])
