"""How files become 8-bit RGB where they leave a choice, and what was worth telling on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from densesiam_seg.errors import ImageError, counted
from densesiam_seg.packed.members import member_of

MAX_PIXELS = 89_000_000
"""Larger images are refused unless more is asked for."""
USED = 0.25
"""Deep images that stay below this share of their range come out dark; told where most of a set do."""

_TOLD = {
    "pages": ("{} more than one page or frame, the first is used", "--page chooses"),
    "bands": ("{} more than three bands, the first three are shown as RGB", "--bands chooses"),
    "band": ("{} two bands, the first is shown as grey", "--bands chooses"),
    "nodata": ("{} pixels without data, filled with the image's mean", ""),
    "unused": ("{} a value for no data or a mask that is not used, so all pixels are shown", ""),
    "alpha": ("{} an alpha that ends below its range, its brightest value is taken as opaque", ""),
    "clipped": ("{} values a little beyond their range, clipped", ""),
    "georeference": (
        "{} a place on earth, which only TIFF masks keep",
        "--format tiff writes these",
    ),
    "scaled": (
        "{} floats of no known range, scaled by each image's own brightest values",
        "train --stretch takes one range for all",
    ),
}
"""By kind: what is told of images that `{}` stands for, and the remedy."""


@dataclass(frozen=True)
class Noted:
    """What was noticed in some files, as numbers; those of other files are added to them."""

    files: Mapping[str, int] = field(default_factory=dict)
    """How many by kind."""
    first: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By kind the first name with its detail."""
    deep: int = 0
    dark: int = 0
    brightest: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of the dark ones: share of the range, value, white."""

    def __add__(self, other: Noted) -> Noted:
        kinds = [kind for kind in _TOLD if kind in self.files or kind in other.files]
        return Noted(
            {kind: self.files.get(kind, 0) + other.files.get(kind, 0) for kind in kinds},
            {
                kind: min(each.first[kind] for each in (self, other) if kind in each.first)
                for kind in kinds
            },
            self.deep + other.deep,
            self.dark + other.dark,
            max(self.brightest, other.brightest),
        )

    def lines(self) -> list[str]:
        """A line for each kind, with the number of files and the first of them by name."""
        told = []
        for kind, count in self.files.items():
            text, remedy = _TOLD[kind]
            name, detail = self.first[kind]
            which = text.format("1 image has" if count == 1 else f"{count} images have")
            told.append(
                f"{which} ({'' if count == 1 else 'first '}{Path(name).name}: {detail})"
                + (f"; {remedy}" if remedy else "")
            )
        if 2 * self.dark > self.deep:
            _, brightest, full = self.brightest
            images = f"{self.dark:,} of {counted(self.deep, 'image')}"
            told.append(
                f"{images} with more than 8 bits reach {brightest:g} of {full:g} at most and come out dark; "
                "train --stretch takes the range that they use"
            )
        return told


class Notes:
    """What was noticed while files were decoded, each file once however often it is read; for several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._files: dict[str, set[int]] = {}
        self._first: dict[str, tuple[str, str]] = {}
        self._deep: set[int] = set()
        self._dark: set[int] = set()
        self._brightest = (0.0, 0.0, 0.0)
        """Of the dark ones: share of the range, value, white."""

    def add(self, kind: str, name: str, detail: str) -> None:
        """Note a kind of `_TOLD` for the file `name`."""
        with self._lock:
            self._files.setdefault(kind, set()).add(hash(name))
            self._first[kind] = min(self._first.get(kind, (name, detail)), (name, detail))

    def range(self, name: str, brightest: float, full: float) -> None:
        """Note the brightest value of a file whose samples reach to `full`, more than 8 bits."""
        with self._lock:
            self._deep.add(hash(name))
            if brightest < USED * full:
                self._dark.add(hash(name))
                self._brightest = max(self._brightest, (brightest / full, brightest, full))

    def noted(self) -> Noted:
        """The same as numbers."""
        with self._lock:
            files = {kind: len(self._files[kind]) for kind in _TOLD if kind in self._files}
            first = {kind: self._first[kind] for kind in files}
            return Noted(files, first, len(self._deep), len(self._dark), self._brightest)

    def lines(self) -> list[str]:
        """A line for each kind, with the number of files and the first of them by name."""
        return self.noted().lines()


@dataclass(frozen=True)
class Decoding:
    """Choices for files that need one.

    `page`: from 1, of files with several pages or frames; None takes the first and notes the others. `bands`: one or
    three places from 1; None takes the first three. `stretch`: the values that become 0 and 255, as shares of the range
    of integer samples and as they are for floats; None takes the range that the file declares.
    """

    max_pixels: int | None = MAX_PIXELS
    page: int | None = None
    bands: tuple[int, ...] | None = None
    stretch: tuple[float, float] | None = None
    notes: Notes = field(default_factory=Notes, compare=False, repr=False)

    def facts(self) -> list[Any]:
        """What pixels depend on, as JSON."""
        bands = None if self.bands is None else list(self.bands)
        return [self.max_pixels, self.page, bands, self.stretch and list(self.stretch)]

    def places(self, name: str, count: int, bits: int = 8) -> list[int]:
        """The places of the one or three bands of `count` that are shown. Raises `ImageError` for others."""
        if self.bands is not None:
            if max(self.bands) > count:
                raise ImageError(
                    name,
                    "no-such-band",
                    f"has {counted(count, 'band')}, not {max(self.bands)}",
                    "give other --bands or leave it out",
                )
            return [band - 1 for band in self.bands]
        shown = 3 if count >= 3 else 1
        if shown < count:
            self.notes.add("bands" if shown == 3 else "band", name, f"{count} of {bits} bits")
        return list(range(shown))

    def place(self, name: str, count: int, page: int | None) -> int:
        """The place of the `page` that is asked for among `count`. Raises `ImageError` for one that is not there."""
        if page is None:
            return 0
        if not 1 <= page <= count:
            raise ImageError(
                name, "no-such-page", f"has {counted(count, 'page')}", "give another --page"
            )
        return page - 1


def page_of(name: str) -> tuple[str, int | None]:
    """`FILE/3`, page 3 of a file that is there, or of one in a tar → the file and 3; any other path as it is."""
    folder, _, last = name.rpartition("/")
    if last.isdecimal() and (os.path.isfile(folder) or member_of(folder)):  # noqa: PTH113 - asked for every image
        return folder, int(last)
    return name, None
