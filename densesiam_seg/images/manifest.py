"""The images of a run as one frozen, sorted list of files.

The place of an image in this list, never the order of a directory, decides what is drawn for it;
so the list is sorted by code point, and its digest tells whether the data are still the same.
"""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import compress, repeat
from typing import Any, TypeAlias

from densesiam_seg.errors import InputError, counted
from densesiam_seg.images.decoding import page_of
from densesiam_seg.packed.members import Member
from densesiam_seg.packed.names import Names
from densesiam_seg.packed.tars import TarError, places


@dataclass(frozen=True, order=True)
class Skipped:
    """A file or folder left out: `path` as in `Manifest.names`, and a kebab-case class.

    `message` reads like that of an `ImageError`: which file, what is wrong, what to do.
    """

    path: str
    reason: str
    message: str


@dataclass(frozen=True)
class PassedOver:
    """How much was met and not taken, although nothing is wrong with it; as text it is a part of a sentence."""

    linked_folders: int = 0
    """Links to folders, which are not followed unless that is asked for."""
    repeated: int = 0
    """Further names of a file that is taken, and links to a folder that is read already."""
    hidden: int = 0
    """Images and folders whose names begin with a dot."""
    outputs: int = 0
    """Images that this program wrote: masks, overlays, pictures in runs."""
    system_images: int = 0
    """Images in the folders of `system`."""
    system: Mapping[str, int] = field(default_factory=dict)
    """Folders and files that belong to the system or the file server, by their names."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Files with suffixes that no image has, by suffix, the commonest first."""
    replaced: int = 0
    """Images of tars that a later member of the same name stands for, as when a file was added again."""

    @property
    def doubtful(self) -> bool:
        """Whether images may be missing that the user has meant."""
        return self.linked_folders > 0

    def __str__(self) -> str:
        others, system = sum(self.others.values()), sum(self.system.values())
        images = f" with {counted(self.system_images, 'image')}" if self.system_images else ""
        parts = [
            counted(others, "file") + f" with other suffixes ({_commonest(self.others)})",
            counted(self.linked_folders, "linked folder") + " not followed (--follow-links)",
            counted(self.repeated, "further name") + " of what is taken already",
            counted(self.replaced, "image") + " of tars with a later one of the same name",
            counted(self.outputs, "image") + " that this program wrote",
            counted(system, "item") + f" of the system ({_commonest(self.system)})" + images,
            counted(self.hidden, "hidden image or folder", "hidden images or folders"),
        ]
        return ", ".join(part for part in parts if not part.startswith("0 "))


def _commonest(counts: Mapping[str, int], most: int = 3) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{count} {name}" for name, count in ranked[:most])
    return shown + (", …" if len(ranked) > most else "")


Stamp: TypeAlias = tuple[int, int, int]
"""Of an image: its bytes, the time in ms of the file that holds it, and the place of its header in a tar, else -1."""


@dataclass(frozen=True)
class Manifest:
    """N images below `root`: files, and members of tars.

    `names`: N paths relative to `root`, with `/`, sorted by code point, unique; any sequence is kept as `Names`.
    `sizes` in bytes and `mtimes_ms` in milliseconds, N each; of a member the time is that of its tar.
    `skipped`: what was left out for a reason, sorted. `passed_over`: what else was there.
    `tars`: names of the tars whose members there are, sorted. `offsets`: where the header of each member begins, N,
    -1 for a file; empty where there is no tar.
    """

    root: str
    names: Sequence[str]
    sizes: array[int]
    mtimes_ms: array[int]
    skipped: tuple[Skipped, ...] = ()
    passed_over: PassedOver = field(default=PassedOver(), compare=False)
    tars: tuple[str, ...] = ()
    offsets: array[int] = field(default_factory=lambda: array("q"))

    def __post_init__(self) -> None:
        if not isinstance(self.names, Names):
            object.__setattr__(self, "names", Names(self.names))

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every (name, size, time); the root is left out, so data may be moved."""
        total = hashlib.sha256()
        for name, size, mtime in zip(self.names, self.sizes, self.mtimes_ms, strict=True):
            total.update(f"{name}\0{size} {mtime}\n".encode("utf-8", "surrogatepass"))
        return total.hexdigest()

    def path(self, index: int) -> str:
        """The full path by which image `index` is opened (`packed.members`)."""
        member = self._member(index)
        return self._below_root(self.names[index]) if member is None else member.path

    def shown(self, index: int) -> str:
        """The full path of image `index` as people know it."""
        return self._below_root(self.names[index])

    def is_there(self, index: int) -> bool:
        """Whether the file of image `index`, or the tar that holds it, is at its place."""
        member = self._member(index)
        return _stamp(self.path(index) if member is None else member.tar) is not None

    def without(self, skipped: Iterable[Skipped]) -> Manifest:
        """Leave out the files that `skipped` names, and note them in `Manifest.skipped`."""
        more = {item.path: item for item in skipped}
        if not more:
            return self
        kept = bytes(name not in more for name in self.names)
        return replace(
            self,
            names=Names(compress(self.names, kept)),
            sizes=array("q", compress(self.sizes, kept)),
            mtimes_ms=array("q", compress(self.mtimes_ms, kept)),
            offsets=array("q", compress(self.offsets, kept)),
            skipped=tuple(sorted({*self.skipped, *more.values()})),
        )

    def changed(self) -> tuple[list[str], list[str]]:
        """Names of images whose size or time is no longer as listed, and of those that cannot be found."""
        edited, gone = [], []
        for name, before, now in zip(self.names, self._listed(), self._stamps(), strict=True):
            if now is None:
                gone.append(name)
            elif now != before:
                edited.append(name)
        return edited, gone

    def restamped(self) -> Manifest:
        """The same images with the sizes, times and places that they have now; none may be gone."""
        now = array("q", (value for each in self._stamps() if each is not None for value in each))
        offsets = now[2::3] if self.offsets else array("q")
        return replace(self, sizes=now[::3], mtimes_ms=now[1::3], offsets=offsets)

    def _listed(self) -> Iterator[Stamp]:
        return zip(self.sizes, self.mtimes_ms, self.offsets or repeat(-1, len(self)), strict=True)

    def _stamps(self) -> Iterator[Stamp | None]:
        """Of each image as it is now, None where it is gone. A tar is looked through again if its time has changed."""
        times: dict[str, int | None] = {}
        known: dict[str, Mapping[str, tuple[int, int]]] = {}
        for index, (size, mtime, offset) in enumerate(self._listed()):
            member = self._member(index)
            if member is None:
                found = _stamp(self.path(index))
                yield None if found is None else (*found, offset)
                continue
            if member.tar not in times:
                stamp = _stamp(member.tar)
                times[member.tar] = None if stamp is None else stamp[1]
            now = times[member.tar]
            if now == mtime:
                yield size, mtime, offset
            elif now is None:
                yield None
            else:
                if member.tar not in known:
                    known = {member.tar: _places(member.tar)}  # images of a tar follow each other
                place = known[member.tar].get(_without_page(member.name, known[member.tar]))
                yield None if place is None else (place[1], now, place[0])

    def _member(self, index: int) -> Member | None:
        """What image `index` is in a tar, None where it is a file."""
        if not self.offsets or self.offsets[index] < 0:
            return None
        name = self.names[index]
        # No tar lies in another, so the last that is not behind the name is its own.
        tar = self._tar_folders[bisect_right(self._tar_folders, name) - 1][:-1]
        return Member(
            self._below_root(tar), name[len(tar) + 1 :], self.offsets[index], self.sizes[index]
        )

    @cached_property
    def _tar_folders(self) -> list[str]:
        # Sorted anew: `x.tar` comes before `x.tar-2.tar`, but `x.tar/` after it.
        return sorted(f"{tar}/" for tar in self.tars)

    def _below_root(self, name: str) -> str:
        # A `Path` for each of a million names would take longer than to ask for their size.
        return os.path.join(self.root, name.replace("/", os.sep))  # noqa: PTH118

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers for JSON; names may hold surrogates, so keep ASCII escapes on."""
        members = {"tars": list(self.tars), "offsets": list(self.offsets)} if self.tars else {}
        return {
            "root": self.root,
            "digest": self.digest,
            "names": list(self.names),
            "sizes": list(self.sizes),
            "mtimes_ms": list(self.mtimes_ms),
            "skipped": [vars(item) for item in self.skipped],
            "passed_over": asdict(self.passed_over),
            **members,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Manifest:
        """The inverse of `to_dict`. Raises `InputError` when fields or the digest do not fit."""
        try:
            manifest = cls(
                str(data["root"]),
                Names(map(str, data["names"])),
                array("q", map(int, data["sizes"])),
                array("q", map(int, data["mtimes_ms"])),
                tuple(Skipped(**{k: str(v) for k, v in item.items()}) for item in data["skipped"]),
                PassedOver(**data.get("passed_over", {})),  # runs of before have none
                tuple(map(str, data.get("tars", ()))),
                array("q", map(int, data.get("offsets", ()))),
            )
            if manifest.digest != data["digest"]:
                raise ValueError("its digest does not fit")
            manifest._require_places()
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            detail = " ".join(str(error).split())
            raise InputError(f"saved list of files: damaged ({detail}); scan anew") from error
        return manifest

    def _require_places(self) -> None:
        """Raises ValueError where members and tars do not belong together."""
        if list(self.tars) != sorted(self.tars) or len(self.offsets) not in (0, len(self)):
            raise ValueError("the places of its images in tars do not fit")
        for name, offset in zip(self.names, self.offsets, strict=False):
            place = bisect_right(self._tar_folders, name) - 1
            if offset >= 0 and (place < 0 or not name.startswith(self._tar_folders[place])):
                raise ValueError(f"{name!a} lies in none of its tars")


def _stamp(path: str) -> tuple[int, int] | None:
    """Size and time in ms of a regular file, or of the one whose page is named."""
    try:
        status = os.stat(page_of(path)[0])  # noqa: PTH116
    except (OSError, ValueError):  # a list that was edited may hold a NUL byte
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns // 1_000_000


def _places(tar: str) -> Mapping[str, tuple[int, int]]:
    try:
        return places(tar)
    except (OSError, TarError):  # none of its images can be used
        return {}


def _without_page(name: str, known: Mapping[str, object]) -> str:
    """The member whose page a name may mean, as `FILE/3`."""
    file, _, page = name.rpartition("/")
    return file if page.isdecimal() and file in known else name
