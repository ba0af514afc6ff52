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
from itertools import pairwise
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


_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Skipped:
    """A file or folder left out: `path` as in `Manifest.names`, and a kebab-case class.

    `message` reads like that of an `ImageError`: which file, what is wrong, what to do.
    """

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
            names = tuple(str(name) for name in data["names"])
            sizes, mtimes_ms = (np.array(data[key], np.int64) for key in ("sizes", "mtimes_ms"))
            if not sizes.shape == mtimes_ms.shape == (len(names),):
                raise ValueError("columns of different length")
            skipped = tuple(Skipped(**item) for item in data["skipped"])
            counts = int(data["ignored"]), int(data["repeated"])
            manifest = cls(str(data["root"]), names, sizes, mtimes_ms, skipped, *counts)
            if manifest.digest != data["digest"]:
                raise ValueError("its digest does not fit")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            detail = " ".join(str(error).split())
            raise InputError(f"saved list of files: damaged ({detail}); scan anew") from error
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
        raise InputError(f"{found.skipped[0].message}; no other image was found")
    return found.manifest(roots.pop() if len(inputs) == 1 else "")


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
            self.skip(path, "not-regular", "is not a regular file; remove it")
            return
        self.paths.append(path)
        self.sizes.append(status.st_size)
        self.mtimes_ms.append(status.st_mtime_ns // 1_000_000)
        self.devices.append(status.st_dev & 0xFFFF_FFFF_FFFF_FFFF)
        self.inodes.append(status.st_ino & 0xFFFF_FFFF_FFFF_FFFF)

    def skip(self, path: str, reason: str, message: str) -> None:
        self.skipped.append(Skipped(path, reason, f"{path}: {message}"))

    def skip_error(self, path: str, error: OSError) -> None:
        if isinstance(error, PermissionError):
            self.skip(path, "permission", "may not be read; change its permissions")
        elif isinstance(error, FileNotFoundError):
            self.skip(path, "dangling-link", "is a link to nothing; remove it")
        else:
            self.skip(path, "unreadable", f"cannot be read ({error.strerror}); remove it")

    def candidates(self) -> int:
        return len(self.paths) + len(self.skipped)

    def manifest(self, root: str) -> Manifest:
        """Sort, keep the first name of every file, make names relative to `root` ("": choose it)."""
        root = root or _common_folder([*self.paths, *(item.path for item in self.skipped)])
        cut = len(_joined(root, ""))
        for index, path in enumerate(self.paths):  # in place: two lists would double the memory
            self.paths[index] = _posix(path[cut:])
        order = np.array(sorted(range(len(self.paths)), key=self.paths.__getitem__), np.int64)
        same_name, same_file = self._repeats(order)
        kept = order[~(same_name | same_file)]
        return Manifest(
            root,
            tuple(self.paths[index] for index in kept.tolist()),
            np.array(self.sizes, np.int64)[kept],
            np.array(self.mtimes_ms, np.int64)[kept],
            _sorted_skips(
                Skipped(_posix(item.path[cut:]) or ".", item.reason, item.message)
                for item in self.skipped
            ),
            ignored=self.others.total(),
            repeated=int((same_file & ~same_name).sum()),
        )

    def _repeats(self, order: npt.NDArray[np.int64]) -> tuple[_Flags, _Flags]:
        """Which places of the sorted list repeat a name, and which a file of an earlier place."""
        same_name = np.zeros(len(order), bool)
        names = self.paths
        same_name[1:] = [names[one] == names[two] for one, two in pairwise(order.tolist())]
        # Size and time belong to the identity because some file systems hand out inodes twice.
        parts = [np.array(column)[order] for column in (self.inodes, self.devices, self.sizes)]
        parts.append(np.array(self.mtimes_ms)[order])
        grouped = np.lexsort(parts)  # stable: within a file the earlier name stays first
        equal = np.ones(len(order) - 1, bool)
        for part in parts:
            equal &= part[grouped[1:]] == part[grouped[:-1]]
        equal &= parts[0][grouped[1:]] != 0  # Windows lists folders without inodes
        same_file = np.zeros(len(order), bool)
        same_file[grouped[1:]] = equal
        return same_name, same_file


# ---- one input -------------------------------------------------------------------------------


def _take(item: str, found: _Found, stdin: TextIO | None) -> str:
    """Add what one input means; returns its root folder, or "" where it has none of its own."""
    if item == "-":
        source = stdin or sys.stdin
        if source is None:
            raise InputError("-: there is no standard input; name a list file")
        _take_list("standard input", getattr(source, "buffer", source), Path.cwd(), found)
        return ""
    if not item:
        raise InputError("an input is empty; name an image file, folder, glob or list")
    path = _absolute(Path.cwd(), item)
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:
        if _is_pattern(item):
            return _take_glob(item, path, found)
        if isinstance(error, PermissionError):
            raise InputError(f"{item}: may not be read; change its permissions") from error
        if isinstance(error, OSError) and Path(path).is_symlink():
            found.skip_error(path, error)
            return _parent(path)
        raise InputError(f"{item}: no such file or folder; check the path") from error
    if stat.S_ISDIR(status.st_mode):
        _take_folder(item, path, found)
        return path
    if stat.S_ISREG(status.st_mode) and path.lower().endswith(".txt"):
        try:
            with Path(path).open("rb") as lines:
                _take_list(item, lines, Path(path).parent, found)
        except OSError as error:
            raise InputError(f"{item}: cannot be read ({error.strerror})") from error
        return ""
    found.add(path, status)
    return _parent(path)


def _take_folder(label: str, folder: str, found: _Found) -> None:
    before, others = found.candidates(), found.others.copy()
    _walk(folder, found)
    if found.candidates() == before:
        raise _no_image(label, found, others)


def _take_glob(label: str, pattern: str, found: _Found) -> str:
    before, others = found.candidates(), found.others.copy()
    parts = Path(pattern).parts
    fixed = 1
    while fixed < len(parts) and _is_fixed(parts[: fixed + 1]):
        fixed += 1
    root = str(Path(*parts[:fixed]))
    if not _is_folder(root):
        raise InputError(f"{label}: no such folder {root}; check the pattern")
    _match(root, list(parts[fixed:]), found)
    if found.candidates() == before:
        raise _no_image(label, found, others)
    return root


def _take_list(label: str, lines: Iterable[str | bytes], folder: Path, found: _Found) -> None:
    missing: list[str] = []
    count = 0
    for number, raw in enumerate(lines, 1):
        line = (os.fsdecode(raw) if isinstance(raw, bytes) else raw).rstrip("\r\n")
        line = line.removeprefix("\ufeff") if number == 1 else line
        if "\0" in line:
            raise InputError(
                f"{label}: line {number} holds a NUL byte; save the list as UTF-8 text"
            )
        if not line.strip() or line.startswith("#"):
            continue
        count += 1
        path = _absolute(folder, line)
        try:
            status = Path(path).stat()
        except PermissionError as error:
            found.skip_error(path, error)
        except OSError:
            missing.append(f"line {number}: {line!a}")
        else:
            if stat.S_ISDIR(status.st_mode):
                raise InputError(f"{label}: line {number} names a folder; name the files in it")
            found.add(path, status)
    if missing:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise InputError(
            f"{label}: {len(missing)} of the {count} files it names do not exist ({some}); "
            "correct the list"
        )
    if not count:
        raise InputError(f"{label}: the list names no file; write one path per line")


def _no_image(label: str, found: _Found, before: Counter[str]) -> InputError:
    others = found.others - before
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(3))
    there = f"{others.total()} other files there" + (f": {kinds}" if kinds else "")
    links = f"; {found.unfollowed} linked folders not followed" if found.unfollowed else ""
    wanted = ", ".join(sorted(SUFFIXES))
    return InputError(
        f"{label}: no image found (looked for {wanted}; {there}{links}); name a folder of images"
    )


# ---- folders ---------------------------------------------------------------------------------


def _walk(folder: str, found: _Found) -> None:
    """Add all images below a folder; each folder is entered once, so links cannot form a loop."""
    stack, entered = [folder], set[tuple[int, int]]()
    while stack:
        folders: list[str] = []
        for entry in _entries(stack.pop(), entered, found):
            if not entry.name.startswith("."):
                _sort_in(entry, folders, found)
        stack.extend(sorted(folders, reverse=True))  # which of two links is entered is settled


def _match(root: str, pattern: list[str], found: _Found) -> None:
    """Add what a glob pattern selects below `root`."""
    stack = [(root, pattern)]
    entered = [set[tuple[int, int]]() for _ in pattern]  # by the number of parts still to match
    while stack:
        here, (head, *tail) = stack.pop()
        deep = head == "**"
        if deep and not tail:
            _walk(here, found)
            continue
        folders: list[str] = []
        for entry in _entries(here, entered[len(tail)], found):
            hidden = entry.name.startswith(".") and not head.startswith(".")
            if not hidden and (deep or fnmatch.fnmatchcase(entry.name, head)):
                _sort_in(entry, folders, found, files=not tail)
        for folder in sorted(folders, reverse=True):
            if tail:
                stack.append((folder, [head, *tail] if deep else tail))
            elif "**" not in pattern:
                _walk(folder, found)
        if deep:  # on top of the stack, so that a folder's own name comes before links to it
            stack.append((here, tail))


def _sort_in(
    entry: os.DirEntry[str], folders: list[str], found: _Found, files: bool = True
) -> None:
    """Put one directory entry where it belongs; without `files` only a folder counts."""
    try:
        if entry.is_dir():
            if found.follow_links or not entry.is_symlink():
                folders.append(entry.path)
            else:
                found.unfollowed += 1
        elif files and (suffix := _suffix(entry.name)) in SUFFIXES:
            found.add(entry.path, entry.stat())
        elif files:
            found.others[suffix] += 1
    except OSError as error:
        found.skip_error(entry.path, error)


def _entries(
    folder: str, entered: set[tuple[int, int]], found: _Found
) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder, unless it was `entered` before."""
    try:
        status = Path(folder).stat()
        identity = (status.st_dev, status.st_ino)
        if identity not in entered:
            entered.add(identity)
            with os.scandir(folder) as entries:
                yield from entries
    except OSError as error:
        found.skip_error(folder, error)


# ---- paths -----------------------------------------------------------------------------------


def _suffix(name: str) -> str:
    """Lower-case suffix with its dot; odd ones share a name, as messages show them."""
    _, dot, end = name.rpartition(".")
    return f".{end.lower()}" if dot and len(end) < 9 and end.isalnum() else "without a suffix"


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _is_fixed(parts: Sequence[str]) -> bool:
    """Whether the last part stands for itself: no pattern, or a folder of exactly that name."""
    return not _is_pattern(parts[-1]) or _is_folder(str(Path(*parts)))


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def _absolute(folder: Path, text: str) -> str:
    """Absolute, and without `..`, as names in a manifest must never lead out of its root."""
    path = folder / text
    if ".." not in path.parts:
        return str(path)
    try:
        return str(path.resolve() if path.name == ".." else path.parent.resolve() / path.name)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{text}: cannot be followed; check the path") from error


def _common_folder(paths: Sequence[str]) -> str:
    """The deepest folder above all paths."""
    folder = _parent(paths[0])
    for path in paths:
        while not path.startswith(_joined(folder, "")):
            if _parent(folder) == folder:
                raise InputError(f"{path}: lies on another drive than {paths[0]}; scan them apart")
            folder = _parent(folder)
    return folder


def _parent(path: str) -> str:
    return str(Path(path).parent)


def _joined(folder: str, name: str) -> str:
    return folder + ("" if folder.endswith(os.sep) else os.sep) + name


def _posix(path: str) -> str:
    return path if os.sep == "/" else path.replace(os.sep, "/")


def _stamp(path: str) -> tuple[int, int] | None:
    """Size and time in ms of a regular file."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns // 1_000_000


def _sorted_skips(items: Iterable[Skipped]) -> tuple[Skipped, ...]:
    return tuple(sorted(set(items), key=lambda item: (item.path, item.reason, item.message)))
