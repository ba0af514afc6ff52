"""What the user named (files, folders, globs, lists) as one frozen, sorted list of files.

The place of an image in this list, never the order of a directory, decides what is drawn for it;
so the list is sorted by code point, and its digest tells whether the data are still the same.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from densesiam_seg.errors import InputError

# The suffixes of `images`, which lies on the same floor; a test holds the two equal.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff"}
    | {".bmp", ".dib", ".gif"}
)


@dataclass(frozen=True)
class Skipped:
    """A file or folder left out: `path` as in `Manifest.names`, a kebab-case class, a sentence."""

    path: str
    reason: str
    message: str


@dataclass(frozen=True, eq=False)
class Manifest:
    """N files below `root`.

    `names`: N paths relative to `root`, with `/`, sorted by code point, unique.
    `sizes` in bytes and `mtimes_ms` in milliseconds: int64 (N,), read-only.
    `skipped`: what was left out for a reason. `ignored`: how many files in scanned folders have
    other suffixes. `repeated`: how many further names lead to a file that is already taken.

    Two manifests are equal when root, names, sizes, times and skipped files are.
    """

    root: str
    names: tuple[str, ...]
    sizes: npt.NDArray[np.int64]
    mtimes_ms: npt.NDArray[np.int64]
    skipped: tuple[Skipped, ...] = ()
    ignored: int = 0
    repeated: int = 0

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.sizes) == len(self.mtimes_ms)
        for column in (self.sizes, self.mtimes_ms):
            column.flags.writeable = False

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Manifest):
            return NotImplemented
        return (
            self.root == other.root
            and self.names == other.names
            and np.array_equal(self.sizes, other.sizes)
            and np.array_equal(self.mtimes_ms, other.mtimes_ms)
            and self.skipped == other.skipped
        )

    def __hash__(self) -> int:
        return hash((self.root, self.digest))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every (name, size, time); the root is left out, so data may be moved."""
        total = hashlib.sha256()
        rows = zip(self.names, self.sizes.tolist(), self.mtimes_ms.tolist(), strict=True)
        for name, size, mtime in rows:
            total.update(name.encode("utf-8", "surrogatepass") + f"\0{size} {mtime}\n".encode())
        return total.hexdigest()

    def path(self, index: int) -> str:
        """The full path of file `index`."""
        return _joined(self.root, self.names[index])

    def select(self, indices: Iterable[int]) -> Manifest:
        """Only the files `indices`, still in sorted order; everything else stays as it is."""
        keep = sorted(set(indices))
        return replace(
            self,
            names=tuple(self.names[index] for index in keep),
            sizes=self.sizes[keep],
            mtimes_ms=self.mtimes_ms[keep],
        )

    def without(self, skipped: Iterable[Skipped]) -> Manifest:
        """Leave out the files that `skipped` names, and note them in `Manifest.skipped`."""
        more = {item.path: item for item in skipped}
        kept = self.select(i for i, name in enumerate(self.names) if name not in more)
        return replace(kept, skipped=_sorted_skips([*self.skipped, *more.values()]))

    def changed(self) -> list[str]:
        """Names of files whose size or time is no longer as listed, or that cannot be found."""
        return [
            name
            for index, name in enumerate(self.names)
            if _stamp(self.path(index)) != (self.sizes[index], self.mtimes_ms[index])
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers for JSON; names may hold surrogates, so keep ASCII escapes on."""
        return {
            "root": self.root,
            "digest": self.digest,
            "names": list(self.names),
            "sizes": self.sizes.tolist(),
            "mtimes_ms": self.mtimes_ms.tolist(),
            "skipped": [vars(item) for item in self.skipped],
            "ignored": self.ignored,
            "repeated": self.repeated,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Manifest:
        """The inverse of `to_dict`. Raises `InputError` when fields or the digest do not fit."""
        try:
            manifest = cls(
                root=str(data["root"]),
                names=tuple(str(name) for name in data["names"]),
                sizes=np.array(data["sizes"], np.int64),
                mtimes_ms=np.array(data["mtimes_ms"], np.int64),
                skipped=tuple(Skipped(**item) for item in data["skipped"]),
                ignored=int(data["ignored"]),
                repeated=int(data["repeated"]),
            )
            intact = manifest.digest == data["digest"]
        except (KeyError, TypeError, ValueError, OverflowError, AssertionError) as error:
            raise InputError(f"saved list of files: is damaged ({error}); scan anew") from error
        if not intact:
            raise InputError("saved list of files: does not match its digest; scan the data anew")
        return manifest


def scan(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    follow_links: bool = False,
    stdin: TextIO | None = None,
) -> Manifest:
    """List the files that `inputs` mean, in any mixture of:

    - a file, whatever its suffix;
    - a folder: all files below it with a suffix of `SUFFIXES`, except hidden ones. Links to folders
      are followed only with `follow_links`;
    - a glob pattern, `**` for any depth: files as in a folder, and folders whole (unless the pattern
      has a `**`). A file or folder of exactly that name is preferred;
    - a `.txt` file: a list, one path per line, relative to the list's folder. Blank lines and
      lines that start with `#` are passed over;
    - `-`: such a list on `stdin` (default: the process's), relative to the working directory.

    A file reached by several names, links and hard links included, is listed once, under the first.
    The root is the folder, the file's folder or the glob's fixed part; for lists and several inputs
    it is the deepest folder above all files.

    Raises `InputError` for what does not exist and where no image is found.
    """
    assert not isinstance(inputs, str | os.PathLike), "inputs is a sequence of paths"
    if not inputs:
        raise InputError("no input given; name image files, folders, globs or lists")
    found = _Found(follow_links)
    roots = {_take(os.fspath(item), found, stdin) for item in inputs}
    if not found.paths:
        reasons = "".join(f"; {item.path}: {item.message}" for item in found.skipped[:1])
        raise InputError(f"no usable image among the inputs{reasons}; name readable image files")
    root = roots.pop() if len(inputs) == 1 else None
    return found.manifest(root)


@dataclass
class _Found:
    """Columns of what was found so far; compact, as there may be a million files."""

    follow_links: bool
    paths: list[str] = field(default_factory=list)
    sizes: array[int] = field(default_factory=lambda: array("q"))
    mtimes_ms: array[int] = field(default_factory=lambda: array("q"))
    devices: array[int] = field(default_factory=lambda: array("Q"))
    inodes: array[int] = field(default_factory=lambda: array("Q"))
    skipped: list[Skipped] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    unfollowed: int = 0

    def add(self, path: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            self.skip(path, "not-regular", "is not a regular file")
            return
        self.paths.append(path)
        self.sizes.append(status.st_size)
        self.mtimes_ms.append(status.st_mtime_ns // 1_000_000)
        self.devices.append(status.st_dev & 0xFFFFFFFFFFFFFFFF)
        self.inodes.append(status.st_ino & 0xFFFFFFFFFFFFFFFF)

    def skip(self, path: str, reason: str, message: str) -> None:
        self.skipped.append(Skipped(path, reason, message))

    def skip_error(self, path: str, error: OSError) -> None:
        if isinstance(error, PermissionError):
            self.skip(path, "permission", "may not be read")
        elif isinstance(error, FileNotFoundError):
            self.skip(path, "dangling-link", "is a link to nothing, or was just removed")
        else:
            self.skip(path, "unreadable", f"cannot be read ({error.strerror})")

    def candidates(self) -> int:
        return len(self.paths) + len(self.skipped)

    def manifest(self, root: str | None) -> Manifest:
        """Sort, keep the first name of every file, and make the names relative to `root`."""
        root = root or _common_folder([*self.paths, *(item.path for item in self.skipped)])
        cut = len(_joined(root, ""))
        for index, path in enumerate(self.paths):  # in place, as two lists would double the memory
            self.paths[index] = _posix(path[cut:])
        order = sorted(range(len(self.paths)), key=self.paths.__getitem__)
        kept: list[int] = []
        files: dict[int, set[int]] = {}
        names = 0
        for index in order:
            if not kept or self.paths[index] != self.paths[order[names - 1]]:
                ...
        raise NotImplementedError
