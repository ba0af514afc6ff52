"""The names of masks: those of their images, unique, and no longer than the disk takes."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

OVERLAY = "_overlay.jpg"


def mask_names(names: Sequence[str]) -> list[str]:
    """`a/x.jpg` → `a/x.png`, but `a/x.jpg.png` where another image is called `a/x` too."""
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    # `x.jpg.jpg` must not become the `x.jpg.png` that `x.jpg` becomes beside `x.png`, nor the folder `x.png`.
    taken = Counter([*stems, *names])
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    taken.update(folder.removesuffix(".png") for folder in folders if folder.endswith(".png"))
    return [
        f"{stem if taken[stem] == 1 else name}.png" for stem, name in zip(stems, names, strict=True)
    ]


def fitting_names(names: Sequence[str], longest: int) -> list[str]:
    """The names of masks, unique as before, with no part of more than `longest` bytes.

    `stem.png` becomes `st-01234567.png`: its beginning, and the first digits of the SHA-256 of the whole of it.
    """
    fitting: list[str] = []
    taken: set[str] = set()
    for name in names:
        found = name
        if (
            len(os.fsencode(name)) > longest
        ):  # a path that is as short as that has no part that is longer
            digits = 8
            while (found := _cut(name, longest, digits)) in taken:
                digits *= 2
                assert digits <= 64, "names are unique"
            taken.add(found)
        fitting.append(found)
    return fitting


def _cut(name: str, longest: int, digits: int) -> str:
    *folders, last = name.split("/")
    stem = last.removesuffix(".png")
    return "/".join(
        [
            *(_cut_part(folder, "", longest, digits) for folder in folders),
            _cut_part(stem, ".png", longest, digits),
        ]
    )


def _cut_part(stem: str, suffix: str, longest: int, digits: int) -> str:
    whole = os.fsencode(stem + suffix)
    if len(whole) <= longest:
        return stem + suffix
    end = f"-{hashlib.sha256(whole).hexdigest()[:digits]}{suffix}"
    room, kept = longest - len(end), 0
    while (room := room - len(os.fsencode(stem[kept]))) >= 0:
        kept += 1
    # Not between a letter and its accent.
    while kept and unicodedata.category(stem[kept]).startswith("M"):
        kept -= 1
    return stem[:kept] + end


def overlay_path(mask: Path) -> Path:
    """Where the overlay of a mask lies."""
    return mask.with_name(mask.stem + OVERLAY)
