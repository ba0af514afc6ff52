"""The names of masks: those of their images, unique, and no longer than the disk takes.

They are derived when they are asked for: of a million images only those names are kept that no rule gives. Two names
are compared by 64-bit hashes first, and as text where these are equal.

Axes: N images, E ends of file names.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import UsageError

Item = TypeVar("Item")


class Derived(Sequence[Item], Generic[Item]):
    """A sequence whose items are made of numbers when they are asked for: equal to a tuple of them, but small."""

    def __init__(self, make: Callable[[int], Item], numbers: Sequence[int]) -> None:
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Derived[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | Derived[Item]:
        if isinstance(place, slice):
            return Derived(self._make, self._numbers[place])
        return self._make(self._numbers[place])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        same = (one == another for one, another in zip(self, other, strict=False))
        return len(self) == len(other) and all(same)

    __hash__ = None  # type: ignore[assignment]


def mask_names(names: Sequence[str], ends: Sequence[str] = (".png",)) -> Sequence[str]:
    """`a/x.jpg` → `a/x`, but `a/x.jpg` where another image is called `a/x` too; masks add `.png` to it.

    `ends` are those of all files of an image: also `a/x` + `_sky.png` must be no other image's. Raises UsageError for
    names that no rule can tell apart.
    """
    folders = _folders(names)
    whole: frozenset[int] = frozenset()
    doubtful = _doubtful(names, folders, ends)
    if doubtful:
        own = [names[index] for index in doubtful]
        kept = _whole(own, folders, ends)
        whole = frozenset(index for index, is_kept in zip(doubtful, kept, strict=True) if is_kept)
    found = Derived(_Rule(names, whole), range(len(names)))
    if len(ends) > 1 and whole:
        _require_unique(names, found, ends)
    return found


class _Rule:
    """What becomes of the name of an image, by its number; a class, since functions in functions cannot be pickled."""

    def __init__(self, names: Sequence[str], whole: frozenset[int]) -> None:
        self._names, self._whole = names, whole

    def __call__(self, index: int) -> str:
        name = self._names[index]
        return name if index in self._whole else stem_of(name)


def stem_of(name: str) -> str:
    """A name with `/` without the suffix of its last part; a part that begins with dots has none there."""
    dot = name.rfind(".")
    before = name[name.rfind("/") + 1 : max(dot, 0)]
    return name[:dot] if before.strip(".") and dot < len(name) - 1 else name


def _folders(names: Iterable[str]) -> set[str]:
    """All folders that the names lie in."""
    found: set[str] = set()
    last = ""
    for name in names:
        folder = name[: max(name.rfind("/"), 0)]
        if folder != last:
            last = folder
            while folder and folder not in found:
                found.add(folder)
                folder = folder[: max(folder.rfind("/"), 0)]
    return found


def _doubtful(names: Sequence[str], folders: set[str], ends: Sequence[str]) -> list[int]:
    """The numbers of images that may have a name in common with another, in order; all others have none."""
    stems, wholes, files = array("q"), array("q"), array("q")
    for name in names:
        stem = stem_of(name)
        stems.append(hash(stem))
        wholes.append(hash(name) if stem != name else hash((name,)))
        if len(ends) > 1:
            files.extend(hash(stem + end) for end in ends)
    folded = array("q", map(hash, _folded(folders, ends)))
    first, second = _numbers(stems), _numbers(wholes)
    often = _repeated(np.concatenate([first, second, _numbers(folded)]))
    doubtful = np.isin(first, often) | np.isin(second, often)
    if len(ends) > 1:
        third = _numbers(files).reshape(-1, len(ends))
        doubtful |= np.isin(third, _repeated(third.ravel())).any(1)
    found: list[int] = np.flatnonzero(doubtful).tolist()
    return found


def _folded(folders: Iterable[str], ends: Iterable[str]) -> list[str]:
    """Names that masks must not have, since a folder has that of the file."""
    return [each.removesuffix(end) for end in ends for each in folders if each.endswith(end)]


def _numbers(values: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(values, np.int64) if values else np.zeros(0, np.int64)


def _repeated(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those that are there more than once."""
    found, counts = np.unique(values, return_counts=True)
    return found[counts > 1]


def _whole(names: Sequence[str], folders: set[str], ends: Sequence[str]) -> list[bool]:
    """Whether the mask of each image must have its whole name."""
    stems = [stem_of(name) for name in names]
    # `x.jpg.jpg` must not become the `x.jpg.png` that `x.jpg` becomes beside `x.png`, nor the folder `x.png`.
    taken = Counter([*stems, *names, *_folded(folders, ends)])
    if len(ends) > 1:
        written = Counter(stem + end for stem in stems for end in ends)
        taken.update(stem for stem in stems if any(written[stem + end] > 1 for end in ends))
    return [taken[stem] > 1 for stem in stems]


def _require_unique(names: Sequence[str], found: Sequence[str], ends: Sequence[str]) -> None:
    """Raises UsageError where two images would have a file in common."""
    files = array("q", (hash(own + end) for own in found for end in ends))
    again = np.isin(_numbers(files), _repeated(_numbers(files))).reshape(-1, len(ends)).any(1)
    owners: dict[str, str] = {}
    for index in np.flatnonzero(again).tolist():
        for end in ends:
            file = found[index] + end
            other = owners.setdefault(file, names[index])
            if other != names[index]:
                raise UsageError(
                    f"{file}: {other} and {names[index]} would both have this file; predict them one by one"
                )


class Fitting(Derived[str]):
    """The names of masks with their suffix; `cut` has those that had to be cut, by number."""

    def __init__(self, stems: Sequence[str], end: str, cut: Mapping[int, str]) -> None:
        super().__init__(_WithEnd(stems, end, cut), range(len(stems)))
        self.cut = cut


class _WithEnd:
    def __init__(self, stems: Sequence[str], end: str, cut: Mapping[int, str]) -> None:
        self._stems, self._end, self._cut = stems, end, cut

    def __call__(self, index: int) -> str:
        return self._cut.get(index) or self._stems[index] + self._end


def fitting_names(names: Sequence[str], longest: int, end: str = ".png") -> Fitting:
    """The names with `end`, unique as before, with no part of more than `longest` bytes.

    `stem.png` becomes `st-01234567.png`: its beginning, and the first digits of the SHA-256 of the whole of it.
    """
    cut: dict[int, str] = {}
    taken: set[str] = set()
    for index, stem in enumerate(names):
        name = found = stem + end
        # A path that is as short as that has no part that is longer.
        if len(os.fsencode(name)) > longest:
            digits = 8
            while (found := _cut(name, end, longest, digits)) in taken:
                digits *= 2
                assert digits <= 64, "names are unique"
            taken.add(found)
            if found != name:
                cut[index] = found
    return Fitting(names, end, cut)


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
