"""A list of samples: a name or path of an image a line, or an image and its label.

Paths begin at the image folder, else at the root, the list's own folder or the current one, or are absolute; they are
written with or without suffix and with `/` or `\\`. Image and label stand apart by white space, a comma, a semicolon or
a tab; since names may have these in them, a whole line is first tried as one name. The text is UTF-8 or, with a byte
order mark, UTF-16, as Windows writes it.

A list comes from others, so what it names lies below the root, unless more is allowed; links there may lead anywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from densesiam_seg.datasets.declaration import Dataset
from densesiam_seg.datasets.index import Index, stem
from densesiam_seg.errors import InputError, looked_for
from densesiam_seg.packed.lists import lines_of, spellings

_FOLDERS = 8
"""So many folders at the start of a full path may be those of another computer."""
_APART = re.compile(r"[ \t]*[,;\t][ \t]*|[ \t]+")


@dataclass(frozen=True)
class Entry:
    """A line: the name of an image, of which `image` is None where it is not there; a pair also gives the label."""

    line: int
    text: str
    name: str
    image: Path | None
    pair: bool = False
    label: Path | None = None
    """Of a pair; None where it is not there."""

    @property
    def whole(self) -> bool:
        """Whether everything that it names is there."""
        return self.image is not None and (self.label is not None or not self.pair)


def _below_any(line: str) -> Iterator[str]:
    """A line whose full paths are those of another computer: without their first folders, one more each time."""
    for count in range(_FOLDERS):
        folders = rf"(?:[^/\\]+[/\\]){{{count}}}"
        shorter = re.sub(rf"(^|[ \t,;])(?:[A-Za-z]:)?[/\\]{folders}(?=[^/\\])", r"\1", line)
        if shorter == line:
            return
        yield shorter


class ListReader:
    """Reads the lists of a split, given its folders' index and the root below which they lie.

    With `allow_outside` lists may name files anywhere.
    """

    def __init__(
        self, dataset: Dataset, index: Index, root: Path, *, allow_outside: bool = False
    ) -> None:
        self.dataset = dataset
        self.index = index
        self.root = root
        self.allow_outside = allow_outside
        self.images = str(index.image_files.folder)
        self.tops = _tops(self.images)
        labels = str(index.label_files.folder)
        # The declaration may put its folders outside, and it is the user's own.
        self.allowed = _tops(str(root)) | self.tops | _tops(labels)

    def read(self, listed: Path) -> list[Entry]:
        """The lines that are not empty.

        Raises InputError for no text, no line, a line that repeats another, and one that leads out of the root.
        """
        entries: dict[str, Entry] = {}
        bases = (str(self.root), str(listed.parent), "")
        for number, line in _lines(listed):
            entry = self._entry(number, line, bases)
            outside = None if self.allow_outside else self._outside(entry, bases)
            if outside is not None:
                raise InputError(
                    f"{listed}: line {number} leads out of {self.root}, to {outside}; "
                    "correct it, or give --allow-outside if you trust the list"
                )
            if not entry.whole:
                below = (self._entry(number, each, bases) for each in _below_any(line))
                entry = next((each for each in below if each.whole), entry)
            if entry.image is None and not entry.pair and line.startswith("#"):
                continue  # a comment
            if entry.name in entries:
                raise InputError(
                    f"{listed}: line {number} repeats {entry.name!r} of line {entries[entry.name].line}; remove one"
                )
            entries[entry.name] = entry
        if not entries:
            raise InputError(f"{listed}: the list is empty; give {self.form()}")
        return list(entries.values())

    def form(self) -> str:
        """What a list should look like, for an error text."""
        return (
            f"one name a line as below {self.index.image_files.folder}, or image and label, "
            f"such as `NAME{self.dataset.image_suffixes[0]} NAME{self.dataset.label_suffix}`"
        )

    def _entry(self, number: int, line: str, bases: Sequence[str]) -> Entry:
        name = self._name(line, bases)
        if name is not None:
            return Entry(number, line, name, self.index.image(name))
        pairs: dict[tuple[Path, Path], Entry] = {}
        half: Entry | None = None
        for gap in _APART.finditer(line):
            left, right = line[: gap.start()], line[gap.end() :]
            name, image = self._image(left, bases)
            if name is None:
                continue
            label = self._file(
                right, self.index.label_files.folder, bases, self.dataset.label_suffix
            )
            entry = Entry(number, line, name, image, pair=True, label=label)
            if image is None or label is None:
                half = half or entry
            else:
                pairs[image, label] = entry
        if len(pairs) > 1:
            one, other, *_ = (f"{image.name!r} and {label.name!r}" for image, label in pairs)
            raise InputError(
                f"{line!r} (line {number}) may be {one} or {other}; set image and label apart by a tab"
            )
        if pairs:
            return next(iter(pairs.values()))
        return half or Entry(number, line, stem(line, self.dataset.image_suffixes) or line, None)

    def _outside(self, entry: Entry, bases: Sequence[str]) -> str | None:
        """A file that the entry names although it does not lie below the root, None where there is none."""
        found = [str(path) for path in (entry.image, entry.label) if path is not None]
        if not entry.whole:
            places = [self.images, *bases]
            for text in filter(_may_lead_out, (entry.text, *_APART.split(entry.text))):
                named = (os.path.join(base, text) for base in places)  # noqa: PTH118
                there = [each for each in named if os.path.isfile(each)]  # noqa: PTH113
                found += there if not any(map(self._is_allowed, there)) else []
        return next((each for each in found if not self._is_allowed(each)), None)

    def _is_allowed(self, path: str) -> bool:
        """Whether a file lies below the root, or its folder does where it really is."""
        place = os.path.abspath(path)  # noqa: PTH100
        if any(map(place.startswith, self.allowed)):
            return True
        folder, name = os.path.split(place)
        real = os.path.join(os.path.realpath(folder), name)  # noqa: PTH118
        return any(map(real.startswith, self.allowed))

    def _name(self, text: str, bases: Sequence[str]) -> str | None:
        """The name of the image in the image folder that is meant."""
        written = list(spellings(text))
        for each in written:
            for name in (each, stem(each, self.dataset.image_suffixes)):
                if name in self.index.images:
                    return name
        for some in ((self.images,), bases):
            names = {
                name for base in some for each in written for name in self._names_at(base, each)
            }
            if len(names) > 1:
                raise InputError(
                    f"{text!r} may be {' or '.join(sorted(names)[:2])} in {self.images}; "
                    "write it as it is there"
                )
            if names:
                return names.pop()
        return None

    def _names_at(self, base: str, path: str) -> list[str]:
        """The images that a path may mean."""
        place = os.path.abspath(os.path.join(base, path))  # noqa: PTH100, PTH118
        top = self._top(place)
        if top is None and os.path.isabs(path):  # noqa: PTH117
            folder, name = os.path.split(place)
            place = os.path.join(os.path.realpath(folder), name)  # noqa: PTH118
            top = self._top(place)
        if top is None:
            return []
        below = place[len(top) :].replace(os.sep, "/")
        bare = stem(below, self.dataset.image_suffixes)
        names = self.index.names
        return names.like(below) or (names.like(bare) if bare else [])

    def _top(self, place: str) -> str | None:
        return next((top for top in self.tops if place.startswith(top)), None)

    def _image(self, text: str, bases: Sequence[str]) -> tuple[str | None, Path | None]:
        """Name and place of the image of a pair, which may lie anywhere."""
        name = self._name(text, bases)
        if name is not None:
            return name, self.index.image(name)
        path = self._file(text, self.index.image_files.folder, bases, "")
        if path is None:
            return None, None
        root, full = (os.path.abspath(each) for each in (self.root, path))  # noqa: PTH100
        name = full.removeprefix(_inside(root)).replace(os.sep, "/")
        return stem(name, self.dataset.image_suffixes) or name, path

    def _file(self, text: str, folder: Path, bases: Sequence[str], suffix: str) -> Path | None:
        """The file of that path, which may lack `suffix`; the folder comes first."""
        for some in ((str(folder),), bases):
            places = [
                os.path.join(base, each + end)  # noqa: PTH118
                for base in some
                for each in spellings(text)
                for end in dict.fromkeys(("", suffix))
            ]
            # By strings, as lists are long; `isfile` never raises.
            found = {os.path.abspath(each): each for each in places if os.path.isfile(each)}  # noqa: PTH100, PTH113
            if len(found) > 1 and len(set(map(os.path.realpath, found))) > 1:
                one, other, *_ = found
                raise InputError(f"{text!r} may be {one} or {other}; give its full path")
            if found:
                return Path(next(iter(found.values())))
        return None


def _may_lead_out(text: str) -> bool:
    return os.path.isabs(text) or ".." in text  # noqa: PTH117


def _tops(folder: str) -> set[str]:
    """What the paths of files below a folder begin with, as it is called and where it really is."""
    return {_inside(full(folder)) for full in (os.path.abspath, os.path.realpath)}


def _inside(folder: str) -> str:
    """What the paths of files below a folder begin with."""
    return folder.rstrip(os.sep) + os.sep


def _lines(listed: Path) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines that are not empty."""
    if not os.path.isfile(listed):  # noqa: PTH113 - as in `reader`
        raise InputError(
            f"{listed}: no such list file{looked_for(listed)}; give a text file with one name a line"
        )
    try:
        content = listed.read_bytes()
    except OSError as error:
        raise InputError(
            f"{listed}: cannot be read ({error.strerror}); make it readable"
        ) from error
    for number, line in enumerate(lines_of(str(listed), content), start=1):
        if line.strip():
            yield number, line.strip()
