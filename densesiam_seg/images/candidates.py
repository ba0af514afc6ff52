"""The files that inputs name, unsorted: each is taken or skipped with a reason, and all become a `Manifest`.

Axis: N files.
"""

from __future__ import annotations

import os
import stat
import struct
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import InputError
from densesiam_seg.images.manifest import Manifest, Skipped
from densesiam_seg.images.opening import SUFFIXES

IDENTITY = np.dtype([("size", "i8"), ("time", "i8"), ("device", "u8"), ("inode", "u8")])
"""Identifies a file, by all four, since on some file systems two have one inode. The time is in milliseconds."""
_PACK = struct.Struct("=qqQQ").pack


@dataclass
class Candidates:
    """N names relative to `root`, with `/`, in the order in which they were met, and an `IDENTITY` for each.

    `root` ends in `/`; it is empty where the names are full paths. `others` counts files by suffixes that no image
    has, `links` the linked folders that were not followed.
    """

    root: str = ""
    names: list[str] = field(default_factory=list)
    identities: bytearray = field(default_factory=bytearray)
    skipped: list[Skipped] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    links: int = 0

    def add(self, name: str) -> str:
        """Take a file; returns why it is skipped instead, or nothing."""
        path = self.root + name
        try:
            found = os.stat(path)  # noqa: PTH116
        except OSError as error:
            return self.refuse(path, error)
        if not stat.S_ISREG(found.st_mode):
            return self._skip(path, "not-regular", "is not a regular file; remove it")
        time = found.st_mtime_ns // 1_000_000
        self.names.append(name)
        self.identities += _PACK(found.st_size, time, found.st_dev, found.st_ino)
        return ""

    def add_image(self, name: str) -> None:
        """Take a file if its suffix is an image's, else count it."""
        dot = name.rfind(".", name.rfind("/") + 2)  # after the first letter, which may be a dot
        suffix = name[dot:].lower() if dot > 0 else ""
        if suffix in SUFFIXES:
            self.add(name)
        else:  # odd suffixes share a name, as messages show them
            self.others[suffix if suffix[1:].isalnum() else "without a suffix"] += 1

    def refuse(self, path: str, error: OSError) -> str:
        """Skip a file that cannot be read; returns the reason."""
        if isinstance(error, PermissionError):
            return self._skip(path, "permission", "may not be read; change its permissions")
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return self._skip(path, "dangling-link", "is a link to nothing; remove it")
        return self._skip(path, "unreadable", f"cannot be read ({error.strerror}); remove it")

    def _skip(self, path: str, reason: str, message: str) -> str:
        self.skipped.append(Skipped(path, reason, f"{Path(path)}: {message}"))
        return reason

    def merge(self, other: Candidates) -> None:
        """Take all that another input means; names become full paths."""
        if self.root:
            self.names = [self.root + name for name in self.names]
            self.root = ""
        self.names += [other.root + name for name in other.names]
        self.identities += other.identities
        self.skipped += other.skipped
        self.others += other.others
        self.links += other.links

    def manifest(self) -> Manifest:
        """Sort, keep the first name of every file, and make names relative to the root or the deepest common folder."""
        names = np.array(self.names, object)
        order = np.argsort(names, kind="stable")
        names = names[order]
        last = np.append(names[1:] != names[:-1], True)  # of repeated paths
        order = order[last]
        files = np.frombuffer(self.identities, IDENTITY)
        first = order[_first_names(files[order])]
        root = self.root or self._common_folder(names[0], names[-1])
        kept = (self.names[place] for place in first)
        names_below = tuple(kept) if self.root else tuple(name[len(root) :] for name in kept)
        skipped = {Skipped(s.path[len(root) :] or ".", s.reason, s.message) for s in self.skipped}
        return Manifest(
            str(Path(root)),
            names_below,
            array("q", files["size"][first].tobytes()),
            array("q", files["time"][first].tobytes()),
            tuple(sorted(skipped)),
            ignored=self.others.total(),
            repeated=len(order) - len(first),
        )

    def _common_folder(self, first: str, last: str) -> str:
        """The deepest folder above all files, of which the first and the last path in order tell all."""
        paths = [first, last, *(item.path for item in self.skipped)]
        try:
            folder = os.path.commonpath({Path(path).parent for path in paths})
        except ValueError as error:
            raise InputError("the inputs lie on several drives; scan them apart") from error
        return Path(folder).as_posix().rstrip("/") + "/"


def _first_names(files: NDArray[np.void]) -> NDArray[np.intp] | slice:
    """The places at which a file is met for the first time, ascending."""
    inodes = np.sort(files["inode"])
    if (inodes[1:] != inodes[:-1]).all():  # nearly always, and much cheaper
        return slice(None)
    return np.sort(np.unique(files, return_index=True)[1])
