"""Options of test-time augmentation and edge refinement, checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from densesiam_seg.errors import UsageError

REFINES = ("auto", "none", "guided", "pamr")
MIN_SCALE, MAX_SCALE, MAX_SCALES = 0.25, 4.0, 8
"""Bounds of a scale, and of the number of scales."""


@dataclass(frozen=True)
class Refinement:
    """Passes whose scores are averaged, and what sharpens the edges of the mean. Raises UsageError.

    `flip` adds the mirror image of every pass, `scales` are factors on the image as it is shown to the network, and
    `refine` is none, guided (a guided filter), pamr (pixel-adaptive mask refinement) or auto: what the model says.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    refine: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= len(self.scales) <= MAX_SCALES or len(set(self.scales)) < len(self.scales):
            raise UsageError(
                f"--scales {_listed(self.scales)}: give 1 to {MAX_SCALES} different factors"
            )
        for scale in self.scales:
            # Also refuses NaN.
            if not MIN_SCALE <= scale <= MAX_SCALE:
                raise UsageError(f"--scales {scale:g}: must be {MIN_SCALE} to {MAX_SCALE:g}")
        if self.refine not in REFINES:
            raise UsageError(f"--refine {self.refine}: give one of {', '.join(REFINES)}")

    def settled(self, trained: str) -> Refinement:
        """The same with `auto` replaced by `trained`, the model's own filter."""
        return replace(self, refine=trained) if self.refine == "auto" else self

    @property
    def plain(self) -> bool:
        """Whether it is a single pass without a filter."""
        return self == PLAIN

    @property
    def passes(self) -> tuple[tuple[float, bool], ...]:
        """Scale of each pass, and whether it shows the mirror image."""
        return tuple(product(self.scales, (False, True) if self.flip else (False,)))

    def describe(self) -> str:
        """Text to append to a protocol's description, since it changes scores; empty where it is plain."""
        parts = ["mean of scores over the mirrored image too"] if self.flip else []
        if self.scales != (1.0,):
            parts.append(f"mean of scores at scales {_listed(self.scales)}")
        if self.refine not in ("auto", "none"):
            parts.append({"guided": "guided filter", "pamr": "PAMR"}[self.refine])
        return f"; on top: {', '.join(parts)}" if parts else ""


PLAIN = Refinement(refine="none")
AS_TRAINED = Refinement()


def refinement(flip: bool = False, scales: str | None = None, refine: str = "auto") -> Refinement:
    """A `Refinement` of what a command line says, scales with commas between them. Raises UsageError."""
    try:
        factors = PLAIN.scales if scales is None else tuple(map(float, scales.split(",")))
    except ValueError as error:
        raise UsageError(
            f"--scales {scales}: give factors with commas between them, such as 0.75,1,1.25"
        ) from error
    return Refinement(flip, factors, refine)


def _listed(scales: Sequence[float]) -> str:
    return ",".join(f"{scale:g}" for scale in scales)
