"""Which files of a split's folders are its images, and which are their labels."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from densesiam_seg.datasets.declaration import Dataset
from densesiam_seg.errors import InputError, counted
from densesiam_seg.images.candidates import is_system_folder


def is_foreign(name: str) -> bool:
    """Whether a file or folder of this name is hidden or the file server's own, and so no data."""
    return name.startswith(".") or is_system_folder(name)


def stem(file: str, suffixes: Iterable[str]) -> str | None:
    """`file` without the first of the suffixes that it ends in, in any letter case; None for no name or no suffix."""
    for suffix in suffixes:
        if file.lower().endswith(suffix.lower()):
            rest = file[: len(file) - len(suffix)]
            return rest if rest and not rest.endswith("/") else None
    return None


@dataclass(frozen=True)
class Files:
    """Paths of all files below a folder, with `/`; of them `dangling` are links to nothing. `links` counts folders."""

    folder: Path
    names: tuple[str, ...] = ()
    dangling: frozenset[str] = frozenset()
    links: int = 0

    @property
    def unfollowed(self) -> str:
        """What links hide, as a sentence; empty where there is none."""
        told = []
        if self.links:
            told.append(f"{counted(self.links, 'linked folder')} not followed")
        if self.dangling:
            told.append(f"{counted(len(self.dangling), 'link')} to nothing")
        return f"{self.folder} has {' and '.join(told)}" if told else ""


def files_below(folder: Path, apart: Path) -> Files:
    """All files below a folder in one walk, without hidden ones and without those below the folder `apart`.

    Links to folders are not followed. A folder that is not there holds nothing. Raises InputError.
    """
    names: list[str] = []
    dangling: set[str] = set()
    links = 0
    pending = [""] if os.path.isdir(folder) else []  # noqa: PTH112
    while pending:
        below = pending.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if is_foreign(entry.name):
                        continue
                    name = below + entry.name
                    if not entry.is_symlink():
                        if not entry.is_dir():
                            names.append(name)
                        elif folder / name != apart:
                            pending.append(f"{name}/")
                    elif os.path.isdir(entry.path):  # noqa: PTH112
                        links += 1
                    else:
                        names.append(name)
                        if not os.path.exists(entry.path):  # noqa: PTH110
                            dangling.add(name)
        except OSError as error:
            raise InputError(f"{error.filename}: {error.strerror}; make it readable") from error
    return Files(folder, tuple(sorted(names)), frozenset(dangling), links)


class Names:
    """Names that are found as they are written, else in any letter case and form of Unicode."""

    def __init__(self, names: Iterable[str]) -> None:
        self.exact = frozenset(names)

    @cached_property
    def folded(self) -> dict[str, list[str]]:
        """The names of each folded one."""
        found: dict[str, list[str]] = {}
        for name in self.exact:
            found.setdefault(folded(name), []).append(name)
        return found

    def like(self, name: str) -> list[str]:
        """All that may be meant."""
        return [name] if name in self.exact else self.folded.get(folded(name), [])


def folded(name: str) -> str:
    """The same for all that letter case and the form of Unicode alone tell apart."""
    return unicodedata.normalize("NFC", name).casefold()


class Index:
    """The images and labels of two folders by name: the path below its folder without the suffix.

    Where both are one folder, a file that ends like a label is the label of an image, never an image itself, unless it
    has a label of its own and is nobody's. `further` are files that are numbered beside a label, such as `x_mask_1.png`
    beside `x_mask.png`: they are neither. `unclaimed` are labels without an image in such a folder.

    Raises InputError for a folder that cannot be read and two images of one name.
    """

    def __init__(self, dataset: Dataset, images: Path, labels: Path) -> None:
        self.suffix = dataset.label_suffix
        there = os.path.isdir(images) and os.path.isdir(labels)  # noqa: PTH112 - as in `reader`
        one = images == labels or (there and images.samefile(labels))
        self.image_files = files_below(images, labels)
        self.label_files = self.image_files if one else files_below(labels, images)
        self.labels: dict[str, list[str]] = {}
        for file in self.label_files.names:
            name = stem(file, [self.suffix])
            if name is not None:
                self.labels.setdefault(name, []).append(file)
        self.label_names = Names(self.labels)
        self.images: dict[str, str] = {}
        self.unclaimed: list[str] = []
        self._take_images(dataset.image_suffixes, beside_labels=one)
        self.further = self._further()
        if one:
            numbered = set(self.further)
            self.images = {name: file for name, file in self.images.items() if file not in numbered}
        self.names = Names(self.images)

    def _take_images(self, suffixes: tuple[str, ...], *, beside_labels: bool) -> None:
        like_labels: list[tuple[str, str, str]] = []
        for file in self.image_files.names:
            name = stem(file, suffixes)
            owner = stem(file, [self.suffix]) if beside_labels else None
            if name is not None and owner is not None:
                like_labels.append((owner, name, file))
            elif name is not None:
                self._take(name, file)
        owners = set(map(folded, self.images)) if like_labels else set()
        # Shorter names first, so that the image which a label belongs to is known before the label.
        for owner, name, file in sorted(like_labels, key=lambda each: (len(each[1]), each)):
            if folded(owner) in owners:
                continue
            if self.label_names.like(name):
                self._take(name, file)
                owners.add(folded(name))
            else:
                self.unclaimed.append(file)

    def _take(self, name: str, file: str) -> None:
        if name in self.images:
            raise InputError(
                f"{self.image_files.folder / file}: has the same name as {Path(self.images[name]).name}, and a label "
                "fits only one; remove or rename one of them"
            )
        self.images[name] = file

    def _further(self) -> list[str]:
        """Files that are numbered beside a label; known only where a label's name has more than a suffix."""
        end, dot, kind = self.suffix.rpartition(".")
        if not dot:
            end, kind = self.suffix, ""
        if not end:
            return []
        numbered = re.compile(re.escape(end) + r"[ _.-]*(\d+|\(\d+\))$", re.IGNORECASE)
        found = []
        for file in self.label_files.names:
            name = stem(file, [dot + kind])
            match = numbered.search(name) if name else None
            if name and match and name[: match.start()] in self.images and name not in self.labels:
                found.append(file)
        return found

    def image(self, name: str) -> Path | None:
        """The image of that very name; None where there is none, or but a link to nothing."""
        file = self.images.get(name)
        return (
            None
            if file is None or file in self.image_files.dangling
            else self.image_files.folder / file
        )

    def label(self, name: str) -> Path | None:
        """The label of the image of that very name. Raises InputError where there are two."""
        folder = self.label_files.folder
        names = self.label_names.like(name)
        if name not in self.labels and len(self.names.folded.get(folded(name), [])) > 1:
            names = []  # of images whose names differ in letter case alone
        files = [file for each in names for file in self.labels[each]]
        if len(files) > 1:
            raise InputError(
                f"{folder / files[0]} and {folder / files[1]}: are both a label of {name!r}; remove or rename one"
            )
        if files:
            return None if files[0] in self.label_files.dangling else folder / files[0]
        if self.label_files.links:
            behind_links = folder / f"{name}{self.suffix}"
            return behind_links if behind_links.is_file() else None
        return None


def kinds(files: Files) -> str:
    """The most frequent suffixes of some files: `3 *.tif, 1 *.txt`; `no file` where there is none."""
    suffixes = Counter(Path(name).suffix for name in files.names)
    told = [
        f"{count:,} *{suffix}" if suffix else f"{count:,} without a suffix"
        for suffix, count in suffixes.most_common(3)
    ]
    return ", ".join(told) or "no file"
