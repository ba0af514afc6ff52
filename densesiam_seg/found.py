"""Files as they are found: each taken once or skipped with a reason, and at last sorted into a `Manifest`."""

from __future__ import annotations

import os
import stat
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from densesiam_seg.errors import InputError
from densesiam_seg.imagefiles import SUFFIXES
from densesiam_seg.manifest import Manifest, Skipped

IDENTITY = struct.Struct("<qqQQ")


@dataclass
class Found:
    """What one input means; `root` is None where it has no folder of its own.

    `files` holds full path → (size, time in ms, device, inode), packed, since a tuple of four takes three times the
    memory. All four make the identity of a file, because some file systems hand out inodes twice.
    """

    root: Path | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    links: int = 0

    def add(self, path: Path) -> str:
        """Take a file; returns why it is skipped instead, or nothing."""
        try:
            status = path.stat()
        except OSError as error:
            return self.refuse(error)
        if not stat.S_ISREG(status.st_mode):
            return self.skip(path, "not-regular", "is not a regular file; remove it")
        time = status.st_mtime_ns // 1_000_000
        self.files[path.as_posix()] = IDENTITY.pack(
            status.st_size, time, status.st_dev, status.st_ino
        )
        return ""

    def add_image(self, path: Path) -> None:
        """Take a file if its suffix is an image's, else count it."""
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            self.add(path)
        else:  # odd suffixes share a name, as messages show them
            self.others[suffix if suffix[1:].isalnum() else "without a suffix"] += 1

    def refuse(self, error: OSError) -> str:
        """Skip what the system does not show; returns the reason."""
        path = Path(error.filename)
        if isinstance(error, PermissionError):
            return self.skip(path, "permission", "may not be read; change its permissions")
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return self.skip(path, "dangling-link", "is a link to nothing; remove it")
        return self.skip(path, "unreadable", f"cannot be read ({error.strerror}); remove it")

    def skip(self, path: Path, reason: str, message: str) -> str:
        self.skipped.append(Skipped(path.as_posix(), reason, f"{path}: {message}"))
        return reason

    def merge(self, other: Found) -> None:
        self.root = None
        self.files |= other.files
        self.skipped += other.skipped
        self.others += other.others

    def manifest(self) -> Manifest:
        """Sort, keep the first name of every file, make names relative to the root; empties `files`."""
        root = self.root or _common_folder([*self.files, *(item.path for item in self.skipped)])
        cut = len(root.as_posix().rstrip("/")) + 1
        count = len(self.files)
        paths = sorted(self.files, reverse=True)
        first: dict[bytes, str] = {}
        while paths:  # given up one by one, as a hundred thousand full paths are large
            path = paths.pop()
            first.setdefault(self.files.pop(path), path[cut:])
        skipped = {Skipped(s.path[cut:] or ".", s.reason, s.message) for s in self.skipped}
        return Manifest(
            str(root),
            tuple(first.values()),
            tuple(IDENTITY.unpack(identity)[0] for identity in first),
            tuple(IDENTITY.unpack(identity)[1] for identity in first),
            tuple(sorted(skipped)),
            ignored=self.others.total(),
            repeated=count - len(first),
        )


def _common_folder(paths: Iterable[str]) -> Path:
    """The deepest folder above all paths."""
    try:
        return Path(os.path.commonpath({Path(path).parent for path in paths}))
    except ValueError as error:
        raise InputError("the inputs lie on several drives; scan them apart") from error
