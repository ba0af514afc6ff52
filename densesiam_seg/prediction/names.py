"""The names of masks: those of their images, unique, and no longer than the disk takes."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from densesiam_seg.errors import UsageError


def mask_names(names: Sequence[str], ends: Sequence[str] = (".png",)) -> list[str]:
    """`a/x.jpg` → `a/x`, but `a/x.jpg` where another image is called `a/x` too; masks add `.png` to it.

    `ends` are those of all files of an image: also `a/x` + `_sky.png` must be no other image's. Raises UsageError for
    names that no rule can tell apart.
    """
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    # `x.jpg.jpg` must not become the `x.jpg.png` that `x.jpg` becomes beside `x.png`, nor the folder `x.png`.
    taken = Counter([*stems, *names])
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    for end in ends:
        taken.update(folder.removesuffix(end) for folder in folders if folder.endswith(end))
    if len(ends) > 1:
        written = Counter(stem + end for stem in stems for end in ends)
        taken.update(stem for stem in stems if any(written[stem + end] > 1 for end in ends))
    found = [stem if taken[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]
    if len(ends) > 1:
        _require_unique(names, found, ends)
    return found


def _require_unique(names: Sequence[str], found: Sequence[str], ends: Sequence[str]) -> None:
    owners: dict[str, str] = {}
    for name, own in zip(names, found, strict=True):
        for end in ends:
            other = owners.setdefault(own + end, name)
            if other != name:
                raise UsageError(
                    f"{own}{end}: {other} and {name} would both have this file; predict them one by one"
                )


def fitting_names(names: Sequence[str], longest: int, end: str = ".png") -> list[str]:
    """The names with `end`, unique as before, with no part of more than `longest` bytes.

    `stem.png` becomes `st-01234567.png`: its beginning, and the first digits of the SHA-256 of the whole of it.
    """
    fitting: list[str] = []
    taken: set[str] = set()
    for stem in names:
        name = found = stem + end
        # A path that is as short as that has no part that is longer.
        if len(os.fsencode(name)) > longest:
            digits = 8
            while (found := _cut(name, end, longest, digits)) in taken:
                digits *= 2
                assert digits <= 64, "names are unique"
            taken.add(found)
        fitting.append(found)
    return fitting


def _cut(name: str, end: str, longest: int, digits: int) -> str:
    *folders, last = name.split("/")
    stem = last.removesuffix(end)
    return "/".join(
        [
            *(_cut_part(folder, "", longest, digits) for folder in folders),
            _cut_part(stem, end, longest, digits),
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
