"""What happens while a command works, as values: the library yields them, the console draws them, tests read them.

Nothing heavy is imported, so that the console can match them by class whatever the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densesiam_seg.config import RunConfig
from densesiam_seg.errors import ImageError, OutputError

COLLAPSED = 0.3
"""Spread below which a run counts as collapsing: untrained heads have about 0.5, healthy runs showed 0.7 to 0.9 and
collapsed ones less than 0.3."""


@dataclass(frozen=True)
class Notice:
    """A line for the user."""

    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.warning else self.text


@dataclass(frozen=True)
class Progress:
    """How far a part of the work is; `what` begins with a word that no other part of the same work begins with."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Predicted:
    """One image (or frame) is done: where its mask lies, or why there is none."""

    image: str
    mask: Path | None
    error: ImageError | OutputError | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    """All that was written for it, by what it is: mask, overlay, confidence, entropy, npy, `only ID`."""
    kept: bool = False
    """Whether it was there already, from an earlier run."""


@dataclass(frozen=True)
class Started:
    """Training is about to make its first step (or its next, after a resume)."""

    run: Path
    config: RunConfig
    images: int
    step: int
    total_steps: int

    def __str__(self) -> str:
        begin = f" from step {self.step}" if self.step else ""
        return (
            f"training on {self.images} images, {self.config.epochs} epochs, {self.total_steps} steps{begin}, "
            f"into {self.run}"
        )


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step: losses before weighting and `total` after, view agreement in [0, 1], wall time.

    `disjoint` counts images whose views do not overlap; `spread` is 0 when the projections have collapsed.
    """

    step: int
    epoch: int
    losses: dict[str, float]
    agreement: float
    seconds: float
    disjoint: int = 0
    spread: float | None = None


@dataclass(frozen=True)
class EpochRecord:
    """Means over an epoch's steps, and how its pixels spread over the clusters."""

    step: int
    epoch: int
    losses: dict[str, float]
    agreement: float
    clusters_in_use: int
    entropy: float
    """Entropy of the cluster shares over log K: 1 when all are alike, 0 when one cluster has everything."""
    shares: list[float]
    """Of each cluster; empty where the method clusters nothing in training."""
    disjoint: int = 0
    spread: float | None = None

    def __str__(self) -> str:
        parts = [f"{name} {value:.3f}" for name, value in self.losses.items() if name != "total"]
        facts = [
            f"loss {self.losses['total']:.3f} ({', '.join(parts)})",
            f"views agree {100 * self.agreement:.0f} %",
        ]
        if self.shares:
            facts.append(f"clusters in use {self.clusters_in_use}/{len(self.shares)}")
        if self.spread is not None:
            facts.append(f"spread {self.spread:.2f}")
        if self.disjoint:
            facts.append(f"{self.disjoint} pairs of views without overlap")
        return f"epoch {self.epoch + 1}: {', '.join(facts)}"

    def collapsed(self, *, spare: bool = False) -> bool:
        """True when most clusters are unused, one has almost everything, or all projections point the same way.

        `spare`: there are more clusters than are wanted, so that some may be unused.
        """
        if self.spread is not None:
            return self.spread < COLLAPSED
        if not self.shares:
            return False
        unused = self.clusters_in_use < len(self.shares) / 2 and not spare
        return unused or max(self.shares) > 0.9


@dataclass(frozen=True)
class Trained:
    """The end: where the run and its model lie."""

    run: Path
    model: Path
    last: EpochRecord | None
    complete: bool
    """False when the time limit came first; `resume` goes on from there."""
    passed_over: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What lay among the images and was not taken (`images.manifest.PassedOver`)."""


Event = Notice | Progress | Started | StepRecord | EpochRecord | Trained
