"""What happens in a training run, as values: the command line draws them, tests read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from densesiam_seg.config import RunConfig
from densesiam_seg.loop import EpochRecord, Preparing, StepRecord


@dataclass(frozen=True)
class Notice:
    """A line for the user."""

    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.warning else self.text


@dataclass(frozen=True)
class Decoding:
    """Images looked at before training starts."""

    done: int
    total: int


@dataclass(frozen=True)
class Keeping:
    """Images whose features of a frozen backbone were written to the disk."""

    done: int
    total: int


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
class Trained:
    """The end: where the run and its model lie."""

    run: Path
    model: Path
    last: EpochRecord | None
    complete: bool
    """False when the time limit came first; `resume` goes on from there."""


Event = Notice | Decoding | Keeping | Started | Preparing | StepRecord | EpochRecord | Trained
