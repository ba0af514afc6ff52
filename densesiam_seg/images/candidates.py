"""Files as they are found: each taken once or skipped with a reason, and at last sorted into a `Manifest`.

Axis: N files.
"""

from __future__ import annotations

import os
import stat
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import InputError
from densesiam_seg.images.columns import Integers, Names, encoded, joined
from densesiam_seg.images.manifest import Manifest, Skipped
from densesiam_seg.images.opening import SUFFIXES
from densesiam_seg.images.ordering import WORD, ascending

ROW = struct.Struct("=qqQQ")
COLUMNS = ("size", "time", "device", "inode")
"""What `ROW` packs. All four make the identity of a file, because some file systems hand out inodes twice."""


@dataclass
class Found:
    """What one input means; `root` is None where it has no folder of its own.

    `names` holds N names relative to the root (full paths where there is none), with `/`, each followed by a NUL, and
    `rows` a `ROW` for each: a million of them fit where as many Python objects would not.
    """

    root: str | None = None
    names: bytearray = field(default_factory=bytearray)
    rows: bytearray = field(default_factory=bytearray)
    skipped: list[Skipped] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    links: int = 0

    def add(self, name: str, entry: os.DirEntry[str] | None = None) -> str:
        """Take a file by its name, or as an entry of its folder; returns why it is skipped instead, or nothing."""
        try:
            status = os.stat(self._path(name)) if entry is None else entry.stat()  # noqa: PTH116
            if not status.st_ino:  # on Windows an entry does not tell
                status = os.stat(self._path(name))  # noqa: PTH116
        except OSError as error:
            return self.refuse(self._path(name), error)
        if not stat.S_ISREG(status.st_mode):
            return self._skip(self._path(name), "not-regular", "is not a regular file; remove it")
        time = status.st_mtime_ns // 1_000_000
        self.names += encoded(f"{name}\0")
        self.rows += ROW.pack(status.st_size, time, status.st_dev, status.st_ino)
        return ""

    def add_image(self, name: str, entry: os.DirEntry[str] | None = None) -> None:
        """Take a file if its suffix is an image's, else count it."""
        dot = name.rfind(".", name.rfind("/") + 2)  # after the first letter, which may be a dot
        suffix = name[dot:].lower() if dot > 0 else ""
        if suffix in SUFFIXES:
            self.add(name, entry)
        else:  # odd suffixes share a name, as messages show them
            self.others[suffix if suffix[1:].isalnum() else "without a suffix"] += 1

    def refuse(self, path: str, error: OSError) -> str:
        """Skip what the system does not show; returns the reason."""
        if isinstance(error, PermissionError):
            return self._skip(path, "permission", "may not be read; change its permissions")
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return self._skip(path, "dangling-link", "is a link to nothing; remove it")
        return self._skip(path, "unreadable", f"cannot be read ({error.strerror}); remove it")

    def _skip(self, path: str, reason: str, message: str) -> str:
        self.skipped.append(Skipped(path, reason, f"{Path(path)}: {message}"))
        return reason

    def _path(self, name: str) -> str:
        return name if self.root is None else inside(self.root) + name

    def extend(self, other: Found) -> None:
        """Take all that was found under the same root."""
        if self.names:
            self.names += other.names
            self.rows += other.rows
        else:  # a large folder need not be copied
            self.names, self.rows = other.names, other.rows
        self.skipped += other.skipped
        self.others.update(other.others)
        self.links += other.links

    def merge(self, other: Found) -> None:
        """Take all that another input means."""
        self._forget_root()
        other._forget_root()
        self.extend(other)

    def manifest(self) -> Manifest:
        """Sort, keep the first name of every file, make names relative to the root; leaves nothing here."""
        sizes, times, *identity = _columns(self.rows)
        self.rows.clear()
        bounds = _bounds(self.names)
        self.names += bytes(WORD)
        places, same = ascending(self.names, bounds)
        places = places[~np.append(same[1:], False)]  # of several looks at one path, the last
        count = len(places)
        root = self.root or self._common_folder(bounds, places)
        if identity:
            places = _firsts([sizes, times, *identity], places)
        sizes, times = sizes[places], times[places]
        cut = len(inside(root))
        head = 0 if self.root else len(encoded(inside(root)))
        names = Names(*joined(self.names, bounds, places, head=head, tail=1))
        self.names.clear()
        skipped = {Skipped(s.path[cut:] or ".", s.reason, s.message) for s in self.skipped}
        return Manifest(
            str(Path(root)),
            names,
            Integers(sizes),
            Integers(times),
            tuple(sorted(skipped)),
            ignored=self.others.total(),
            repeated=count - len(names),
        )

    def _forget_root(self) -> None:
        """Make names full paths."""
        if self.root is not None and self.names:
            prefix = encoded(inside(self.root))
            self.names = self.names.replace(b"\0", b"\0" + prefix)
            self.names[:0] = prefix
            del self.names[-len(prefix) :]
        self.root = None

    def _common_folder(self, bounds: NDArray[np.int64], places: NDArray[np.int32]) -> str:
        """The deepest folder above all full paths, of which the first and the last in order tell all."""
        paths = [*Names(*joined(self.names, bounds, places[[0, -1]], tail=1))]
        paths += [item.path for item in self.skipped]
        try:
            return Path(os.path.commonpath({Path(path).parent for path in paths})).as_posix()
        except ValueError as error:
            raise InputError("the inputs lie on several drives; scan them apart") from error


def _columns(rows: bytearray) -> list[NDArray[np.int64]]:
    """Sizes, times and, where two files may be the same one, devices and inodes; N each."""
    table = np.frombuffer(rows, np.dtype([(name, np.int64) for name in COLUMNS]))
    inodes = np.sort(table["inode"])
    alone = bool((inodes[1:] != inodes[:-1]).all())  # nearly always, and then half is enough
    return [table[name].copy() for name in COLUMNS[: 2 if alone else 4]]


def _bounds(names: bytearray) -> NDArray[np.int64]:
    """Where each name begins, and where the last one's NUL ends (N + 1)."""
    ends = np.flatnonzero(np.frombuffer(names, np.uint8) == 0)
    return np.append(-1, ends) + 1


def _firsts(columns: list[NDArray[np.int64]], places: NDArray[np.int32]) -> NDArray[np.int32]:
    """Of the places at which all columns agree only the first."""
    columns = [values[places] for values in columns]
    order = np.lexsort(columns)  # keeps the order of those that agree
    agree = np.logical_and.reduce([values[order[1:]] == values[order[:-1]] for values in columns])
    first = np.ones(len(places), np.bool_)
    first[order[1:]] = ~agree
    return places[first]


def inside(folder: str) -> str:
    """What the paths of files in a folder begin with."""
    return folder.rstrip("/") + "/"
