"""What is written for each image, and how its file names end."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from densesiam_seg.errors import UsageError

Format: TypeAlias = Literal["png", "tiff", "npy"]
SUFFIXES: Mapping[str, Format] = {".png": "png", ".tif": "tiff", ".tiff": "tiff", ".npy": "npy"}
"""The format of a mask by the end of its name."""
TILE = 4096
"""Images with a longer side are cut into tiles."""
SMALLEST_TILE = 256
_LONGEST_NAME = 60
"""Bytes of a cluster's name in a file's name."""
_TAKEN = frozenset({"overlay", "confidence", "entropy"})


@dataclass(frozen=True)
class Wanted:
    """The files of each image. Raises UsageError for choices that contradict each other or are out of range.

    `form` is that of the mask and of the other grey pictures; None until it is known, then PNG unless a file's suffix
    says more. With `only`, ids of clusters and what their files are called, there is a picture of each of them (255
    where it is, 0 elsewhere) in place of the mask. Pixels below `min_confidence` belong to no cluster. `tile` is the
    longest side of an image that is looked at as a whole, 0 for any; of a video one frame in `every` is taken.
    """

    form: Format | None = None
    overlay: bool = False
    legend: bool = False
    """On the overlay, which there is then in any case."""
    confidence: bool = False
    entropy: bool = False
    npy: bool = False
    """Ids as an array beside the mask."""
    only: Mapping[int, str] = field(default_factory=dict)
    min_confidence: float | None = None
    tile: int = TILE
    every: int = 1

    def __post_init__(self) -> None:
        if self.form not in (None, *get_args(Format)):
            raise UsageError(f"--format {self.form}: give png, tiff or npy")
        least = self.min_confidence
        if least is not None and not (math.isfinite(least) and 0 <= least <= 1):
            raise UsageError(f"--min-confidence {least:g}: must be 0 to 1")
        if self.tile != 0 and self.tile < SMALLEST_TILE:
            raise UsageError(
                f"--tile {self.tile}: must be at least {SMALLEST_TILE} pixels, or 0 for no tiles"
            )
        if self.every < 1:
            raise UsageError(f"--every {self.every}: must be at least 1")

    def settled(self, form: Format) -> Wanted:
        """The same with `form` where none is given. Raises UsageError where another one is."""
        if self.form not in (None, form):
            raise UsageError(
                f"--format {self.form}: the name in --out says {form}; leave one of them out"
            )
        return replace(self, form=form)

    @property
    def suffix(self) -> str:
        """Of the mask."""
        return {"tiff": ".tif", "npy": ".npy"}.get(self.form or "png", ".png")

    @property
    def drawn(self) -> bool:
        """Whether there is an overlay."""
        return self.overlay or self.legend

    @property
    def graded(self) -> bool:
        """Whether something depends on how sure the model is."""
        return self.confidence or self.entropy or self.min_confidence is not None

    @property
    def ends(self) -> dict[str, str]:
        """What the names of an image's files end in, by what they are; the mask, or what is in its place, is last."""
        # An array has no place for a map of 8 bits that other programs would find.
        grey = ".png" if self.form == "npy" else self.suffix
        found = {}
        if self.drawn:
            found["overlay"] = "_overlay.jpg"
        if self.confidence:
            found["confidence"] = f"_confidence{grey}"
        if self.entropy:
            found["entropy"] = f"_entropy{grey}"
        if self.npy and self.form != "npy":
            found["npy"] = ".npy"
        if self.only:
            return found | {f"only {id_}": f"_{name}{grey}" for id_, name in self.only.items()}
        return found | {"mask": self.suffix}

    def files(self, mask: Path, *, own_name: bool = False) -> dict[str, Path]:
        """Where the files of an image lie, by what they are, if `mask` is the name of its mask.

        With `own_name` the user gave that name; of a single cluster it is then the picture's.
        """
        found = {what: mask.with_name(mask.stem + end) for what, end in self.ends.items()}
        for what in found:
            if what == "mask" or (own_name and what.startswith("only") and len(self.only) == 1):
                found[what] = mask
        return found

    @property
    def named(self) -> bool:
        """Whether names of clusters are in a picture or in the name of one."""
        return self.legend or bool(self.only)

    def facts(self) -> dict[str, Any]:
        """What the bytes of a file depend on, as JSON; which files there are is not among it."""
        return {
            "masks": self.form or "png",
            "legend": self.legend,
            "min_confidence": self.min_confidence,
            "tile": self.tile,
        }

    def require_ids(self, clusters: int) -> None:
        """Raises UsageError where pixels without a cluster have no id, since 255 is one."""
        from densesiam_seg.pictures.masks import LARGEST_8_BIT  # numpy comes with it

        if self.min_confidence is not None and clusters > LARGEST_8_BIT:
            raise UsageError(
                f"--min-confidence: 255 is an id in masks of {clusters} clusters; at most {LARGEST_8_BIT} leave it free"
            )


def file_names(clusters: Mapping[int, str]) -> dict[int, str]:
    """Names of clusters, by id, as parts of file names: letters, digits, `-` and `_`, each once in any letter case."""
    found: dict[int, str] = {}
    taken = set(_TAKEN)
    for id_, name in clusters.items():
        safe = _safe(name)
        while not safe or safe.casefold() in taken:
            safe = f"{safe}-{id_}".lstrip("-")
        taken.add(safe.casefold())
        found[id_] = safe
    return found


def _safe(name: str) -> str:
    plain = unicodedata.normalize("NFC", name)
    letters = "".join(c if c.isalnum() or c in "-_" else " " for c in plain)
    safe = "-".join(letters.split()).strip("-")
    while len(safe.encode()) > _LONGEST_NAME:
        safe = safe[:-1]
    return safe
