"""What the training loop asks of a method: the network, and the objective of one batch.

Axes: B images, K clusters, S stored side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from densesiam_seg.clustering.kmeans import MAX_MAGNITUDE
from densesiam_seg.errors import NumericError
from densesiam_seg.images.store import Batch, ImageStore
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.peers.group import ALONE, Group

Terms = dict[str, tuple[float, Tensor]]
"""Weight and value of each loss, by its name."""


@dataclass(frozen=True)
class Objective:
    """The weighted sum to minimise, its parts before weighting, and diagnostics that need no labels."""

    total: Tensor
    parts: dict[str, Tensor]
    agreement: Tensor
    """Share of pixels (or of sampled pairs) that both views, or a view and its targets, give the same cluster; of whole
    images, without any dense loss: share of those whose other view is the most similar one of the batch."""
    histogram: Tensor
    """Pixels per cluster over both views, (K,) int64; empty where nothing is clustered."""
    disjoint: int = 0
    """Images whose two views do not overlap."""
    spread: Tensor | None = None
    """Deviation of the L2-normalised projections times √dimensions: 1 is healthy, 0 collapsed (SimSiam, figure 2)."""
    sound: Tensor | None = None
    """Whether the features can be learned from (`sound_features`), as a loss of normalised ones does not tell."""


def sound_features(features: Tensor) -> Tensor:
    """Whether features (any shape) are numbers whose squares are, too, and not all the same."""
    lowest, highest = torch.aminmax(features.detach())
    # No comparison with NaN is true.
    return (lowest < highest) & (lowest >= -MAX_MAGNITUDE) & (highest <= MAX_MAGNITUDE)


def diverged(what: str, step: int, files: Sequence[str]) -> NumericError:
    """The error of a step whose batch has those images; `what` says what is wrong with its numbers."""
    more = ", …" if len(files) > 4 else ""
    return NumericError(
        f"{what} at step {step} (batch with {', '.join(files[:4])}{more}); "
        "the last checkpoint is kept: lower --learning-rate or use --precision fp32",
        step=step,
        files=files,
    )


def weighted(terms: Terms) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of losses, added up in their order, and its parts before weighting."""
    total = sum((weight * loss for weight, loss in terms.values()), torch.zeros(()))
    return total, {name: loss.detach() for name, (_, loss) in terms.items()}


class Method(ABC):
    """One way to learn from unlabelled images. By default it prepares nothing and adds nothing to checkpoints."""

    network: DenseSiam
    group: Group = ALONE
    """The processes that share the work. Each has a part of every batch, and `objective` is the mean over its part: the
    means of all parts, by their numbers of images, are the mean over the batch."""

    def trained(self) -> nn.Module:
        """What the objective has gradients of."""
        return self.network

    def prepare(self, store: ImageStore, epoch: int) -> Iterator[int]:
        """What an epoch needs before its first step; yields how many images are done."""
        return iter(())

    def batches(
        self, store: ImageStore, groups: Sequence[tuple[int, ...]], *, pinned: bool
    ) -> Iterator[Batch]:
        """What `objective` takes, for each group of images' positions: stored images, uint8 (B, 3, S, S)."""
        return store.batches(groups, pinned=pinned)

    def drawn(self, images: Tensor, indices: Sequence[int], epoch: int) -> Any:
        """What `objective` sees of one of those batches on the network's device: no function of the network's weights.

        By default the images as they are. Tensors of views lie in dataclasses, so that a GPU may draw them ahead.
        """
        return images

    def compilable(self) -> bool:
        """Whether it has anything that pays to compile on a GPU."""
        return False

    def compile(self, batch_size: int) -> None:  # noqa: B027
        """Compile that, and try it under autocast. Weights and state stay as they are.

        Raises whatever the compiler raises; then nothing has changed.
        """

    @abstractmethod
    def objective(self, drawn: Any, indices: Sequence[int], epoch: int) -> Objective:
        """The objective of what was `drawn` of a batch; called under autocast."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold beside the network's."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take over what `state` returned."""
