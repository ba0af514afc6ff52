"""The files that inputs name, unsorted: each is taken or skipped with a reason, and all become a `Manifest`.

Axis: N files.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import InputError
from densesiam_seg.images.manifest import Manifest, PassedOver, Skipped
from densesiam_seg.images.opening import SUFFIXES
from densesiam_seg.packed.members import plain_name, tar_above
from densesiam_seg.packed.names import Names
from densesiam_seg.packed.tars import Entry, TarError, decompressor, entries, is_tar, places

SYSTEM_FOLDERS = frozenset(
    # Synology, QNAP and NetApp: thumbnails, metadata, deleted files, snapshots
    {"@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", ".@__thumb"}
    | {"@__thumb", "@sharebin", "network trash folder"}
    | {"~snapshot", ".snapshot", ".zfs"}
    # Windows
    | {"$recycle.bin", "recycler", "recycled", "system volume information"}
    # macOS
    | {"__macosx", ".appledouble", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems"}
    | {".documentrevisions-v100"}
    # Linux
    | {"lost+found", ".trash", ".thumbnails"}
)
"""Folders of file servers and systems, in lower case: what is in them was made by them or was deleted, and is no data.

`.Trash-1000`, `found.001` and the like count too. A folder that the user names is read, whatever its name.
"""
_NUMBERED = re.compile(r"\.trash-.*|found\.\d{3}")
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", ".picasa.ini"})
"""Files of the same kind, in lower case; `._NAME` is another, macOS's metadata of a file."""

IDENTITY = np.dtype(
    [("size", "i8"), ("time", "i8"), ("device", "u8"), ("inode", "u8"), ("offset", "i8")]
)
"""Identifies an image, by all five, since on some file systems two files have one inode. The time is in milliseconds.

Of the member of a tar the offset is that of its header, and time, device and inode are the tar's; of a file it is -1.
"""
_ODD = np.uint64(0x9E3779B97F4A7C15)
_PACK = struct.Struct("=qqQQq").pack


@dataclass
class Candidates:
    """N names relative to `root`, with `/`, in the order in which they were met, and an `IDENTITY` for each.

    `root` ends in `/`; it is empty where the names are full paths. The others are as in `PassedOver`.
    """

    root: str = ""
    names: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    """Names of tars, whose members are called `TAR/MEMBER`."""
    identities: bytearray = field(default_factory=bytearray)
    skipped: list[Skipped] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    system: Counter[str] = field(default_factory=Counter)
    system_images: int = 0
    links: int = 0
    repeated: int = 0
    replaced: int = 0
    hidden: int = 0
    outputs: int = 0
    _looked_through: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)

    def add(self, name: str, *, no_tar: bool = False) -> str:
        """Take a file, or the images in a tar; returns why it is skipped instead, or nothing.

        With `no_tar` the suffix has been looked at already.
        """
        path = self.root + name
        try:
            found = os.stat(path)  # noqa: PTH116
        except NotADirectoryError as error:
            return self._add_member(name, error)
        except OSError as error:
            return self.refuse(path, error)
        if not stat.S_ISREG(found.st_mode):
            return self._skip(path, "not-regular", "is not a regular file; remove it")
        if not no_tar and is_tar(name):
            return self._add_tar(name, found)
        if not no_tar and (program := decompressor(name)):
            remedy = f"make a plain tar of it: {program} {name[name.rfind('/') + 1 :]}"
            return self._skip(path, "compressed", f"is a compressed tar; {remedy}")
        time = found.st_mtime_ns // 1_000_000
        self.names.append(name)
        self.identities += _PACK(found.st_size, time, found.st_dev, found.st_ino, -1)
        return ""

    def _add_member(self, name: str, error: OSError) -> str:
        """Take a file in a tar that is named as `x.tar/7.jpg`; returns why it is skipped instead, or nothing."""
        path = self.root + name
        tar = tar_above(path)
        try:
            if tar and tar not in self._looked_through:
                self._looked_through = {
                    tar: places(tar)
                }  # lists name those of a tar one after the other
            place = self._looked_through.get(tar, {}).get(path[len(tar) + 1 :])
            if place is None:
                return self.refuse(path, error)
            found = os.stat(tar)  # noqa: PTH116
        except OSError as fault:
            return self.refuse(tar, fault)
        except TarError as fault:
            return self._skip(tar, fault.reason, str(fault))
        time = found.st_mtime_ns // 1_000_000
        self.names.append(name)
        self.identities += _PACK(place[1], time, found.st_dev, found.st_ino, place[0])
        tar_name = tar[len(self.root) :]
        if self.tars[-1:] != [tar_name]:
            self.tars.append(tar_name)
        return ""

    def _add_tar(self, name: str, found: os.stat_result) -> str:
        """Take the images in a tar, if it can be read to its end; returns why it is skipped instead, or nothing."""
        path = self.root + name
        inside = _Inside(path)
        try:
            for entry in entries(path):
                inside.take(entry)
        except OSError as error:
            return self.refuse(path, error)
        except TarError as error:
            return self._skip(path, error.reason, str(error))
        time = found.st_mtime_ns // 1_000_000
        for member, (offset, size) in inside.images.items():
            self.names.append(f"{name}/{member}")
            self.identities += _PACK(size, time, found.st_dev, found.st_ino, offset)
        self.tars.append(name)
        self._count(inside.others)
        return ""

    def add_image(self, name: str) -> None:
        """Take a file if its suffix is an image's, else count it."""
        suffix = _suffix(name)
        if suffix in SUFFIXES:
            self.add(name, no_tar=True)
        elif is_tar(name) or decompressor(name):
            self.add(name)
        else:
            self.count_other(name)

    def count_other(self, name: str) -> None:
        """Count a file that is no image."""
        suffix = _suffix(name)
        if name[name.rfind("/") + 1 :].lower() in SYSTEM_FILES:
            self.system[name[name.rfind("/") + 1 :]] += 1
        else:  # odd suffixes share a name, as messages show them
            self.others[suffix if suffix[1:].isalnum() else "without a suffix"] += 1

    def hide(self, name: str) -> None:
        """Count a file whose own name begins with a dot, unless it is of no interest to anybody."""
        if name.startswith("._"):
            self.system["._*"] += 1
        elif name.lower() in SYSTEM_FILES:
            self.system[name] += 1
        elif _suffix(name) in SUFFIXES or is_tar(name):
            self.hidden += 1

    def leave_system_folder(self, path: str) -> None:
        """Count such a folder and the images in it."""
        self.system[path[path.rfind("/") + 1 :]] += 1
        self.system_images += images_below(path)

    def refuse(self, path: str, error: OSError) -> str:
        """Skip a file that cannot be read; returns the reason."""
        if isinstance(error, PermissionError):
            return self._skip(path, "permission", "may not be read; change its permissions")
        gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        if gone or error.errno == errno.ENAMETOOLONG:  # what has no name is not there
            return self._skip(path, "dangling-link", "is a link to nothing; remove it")
        return self._skip(path, "unreadable", f"cannot be read ({error.strerror}); remove it")

    def refuse_member(self, name: str, message: str) -> None:
        """Skip an image in a tar, which is the root."""
        self._skip(self.root + name, "not-regular", message)

    def _skip(self, path: str, reason: str, message: str) -> str:
        self.skipped.append(Skipped(path, reason, f"{Path(path)}: {message}"))
        return reason

    def merge(self, other: Candidates) -> None:
        """Take all that another input means; names become full paths."""
        if self.root:
            self.names = [self.root + name for name in self.names]
            self.tars = [self.root + name for name in self.tars]
            self.root = ""
        self.names += [other.root + name for name in other.names]
        self.tars += [other.root + name for name in other.tars]
        self.identities += other.identities
        self._count(other)

    def _count(self, other: Candidates) -> None:
        """Add what another did not take."""
        self.skipped += other.skipped
        self.others += other.others
        self.system += other.system
        for count in ("system_images", "links", "repeated", "replaced", "hidden", "outputs"):
            setattr(self, count, getattr(self, count) + getattr(other, count))

    def passed_over(self, repeated: int = 0) -> PassedOver:
        """What is not taken; `repeated` further names were found on top of those that are known."""
        return PassedOver(
            linked_folders=self.links,
            repeated=self.repeated + repeated,
            replaced=self.replaced,
            hidden=self.hidden,
            outputs=self.outputs,
            system_images=self.system_images,
            system=dict(self.system.most_common()),
            others=dict(self.others.most_common()),
        )

    def manifest(self, *, merge: bool = True) -> Manifest:
        """Sort, and make names relative to the root or the deepest common folder.

        With `merge` only the first name of every file is kept, else every name, each once.
        """
        names = np.array(self.names, object)
        order = np.argsort(names, kind="stable")
        names = names[order]
        last = np.append(names[1:] != names[:-1], True)  # of repeated paths
        order = order[last]
        files = np.frombuffer(self.identities, IDENTITY)
        first = order[_first_names(files, order)] if merge else order
        root = self.root or self._common_folder(names[0], names[-1])
        del names  # a million of them are long enough without it
        kept = (self.names[place] for place in first)
        names_below = Names(kept if self.root else (name[len(root) :] for name in kept))
        skipped = {Skipped(s.path[len(root) :] or ".", s.reason, s.message) for s in self.skipped}
        offsets = files["offset"][first] if self.tars else np.empty(0, np.int64)
        cut = 0 if self.root else len(root)
        return Manifest(
            str(Path(root)),
            names_below,
            array("q", files["size"][first].tobytes()),
            array("q", files["time"][first].tobytes()),
            tuple(sorted(skipped)),
            passed_over=self.passed_over(len(order) - len(first)),
            tars=tuple(sorted(tar[cut:] for tar in set(self.tars))),
            offsets=array("q", offsets.tobytes()),
        )

    def _common_folder(self, first: str, last: str) -> str:
        """The deepest folder above all files, of which the first and the last path in order tell all."""
        paths = [first, last, *(item.path for item in self.skipped)]
        try:
            folder = os.path.commonpath({Path(self._on_disk(path)).parent for path in paths})
        except ValueError as error:
            raise InputError("the inputs lie on several drives; scan them apart") from error
        return Path(folder).as_posix().rstrip("/") + "/"

    def _on_disk(self, path: str) -> str:
        """The tar that holds what has this path, else the path."""
        return next((tar for tar in self.tars if path.startswith(f"{tar}/")), path)


class _Inside:
    """The images of one tar, by their plain names: the places of their headers, and their sizes."""

    def __init__(self, path: str) -> None:
        self.images: dict[str, tuple[int, int]] = {}
        self.others = Candidates(f"{path}/")
        """What is not taken."""
        self._system: set[str] = set()

    def take(self, entry: Entry) -> None:
        """Take a member if it is an image, else count it; the last of a name is what the tar holds."""
        if entry.kind == "folder":
            return
        name = plain_name(entry.name)
        if _suffix(name or entry.name) not in SUFFIXES:
            self.others.count_other(name or entry.name)
        elif not name:
            self._skip(entry.name, "leads out of the tar by its name", "rename it")
        elif self._is_passed_over(name):
            pass
        elif entry.kind == "file":
            self.others.replaced += name in self.images
            self.images[name] = entry.offset, entry.size
        elif entry.kind == "link":
            remedy = "pack the tar with --dereference --hard-dereference"
            self._skip(name, "is a link in a tar, which has no content of its own", remedy)
        elif entry.kind == "sparse":
            self._skip(name, "is sparse, so that its content is in pieces", "pack without --sparse")
        else:
            self._skip(name, "is a device or pipe in a tar", "remove it")

    def _skip(self, name: str, detail: str, remedy: str) -> None:
        self.others.refuse_member(name, f"{detail}; {remedy}")

    def _is_passed_over(self, name: str) -> bool:
        """Count an image that is hidden, or lies in a folder that is or belongs to the system."""
        *folders, last = name.split("/")
        for depth, folder in enumerate(folders, 1):
            if is_system_folder(folder):
                self.others.system_images += 1
                whole = "/".join(folders[:depth])
                if whole not in self._system:
                    self._system.add(whole)
                    self.others.system[folder] += 1
                return True
        if last.startswith("."):
            self.others.hide(last)
            return True
        hidden = any(folder.startswith(".") for folder in folders)
        self.others.hidden += hidden
        return hidden


def _first_names(files: NDArray[np.void], order: NDArray[np.intp]) -> NDArray[np.intp] | slice:
    """The places in `order` at which an image is met for the first time, ascending."""
    # All members of a tar have its inode; a product that overflows keeps equal ones equal.
    mixed = files["offset"].astype(np.uint64)
    mixed *= _ODD
    mixed += files["inode"]
    mixed.sort()
    if (mixed[1:] != mixed[:-1]).all():  # nearly always, and much cheaper
        return slice(None)
    return np.sort(np.unique(files[order], return_index=True)[1])


def is_system_folder(name: str) -> bool:
    """Whether a folder of this name belongs to the system (`SYSTEM_FOLDERS`)."""
    lower = name.lower()
    return lower in SYSTEM_FOLDERS or _NUMBERED.fullmatch(lower) is not None


def images_below(folder: str) -> int:
    """How many files below a folder have an image's suffix, as far as it can be read."""
    return sum(
        _suffix(name) in SUFFIXES and not name.startswith(".")
        for _, _, files in os.walk(folder)
        for name in files
    )


def _suffix(name: str) -> str:
    dot = name.rfind(".", name.rfind("/") + 2)  # after the first letter, which may be a dot
    return name[dot:].lower() if dot > 0 else ""
