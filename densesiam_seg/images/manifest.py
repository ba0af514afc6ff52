"""The images of a run as one frozen, sorted list of files.

The place of an image in this list, never the order of a directory, decides what is drawn for it;
so the list is sorted by code point, and its digest tells whether the data are still the same.
"""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import compress
from typing import Any

from densesiam_seg.errors import InputError, counted
from densesiam_seg.images.decoding import page_of


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
            counted(self.outputs, "image") + " that this program wrote",
            counted(system, "item") + f" of the system ({_commonest(self.system)})" + images,
            counted(self.hidden, "hidden image or folder", "hidden images or folders"),
        ]
        return ", ".join(part for part in parts if not part.startswith("0 "))


def _commonest(counts: Mapping[str, int], most: int = 3) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{count} {name}" for name, count in ranked[:most])
    return shown + (", …" if len(ranked) > most else "")


@dataclass(frozen=True)
class Manifest:
    """N files below `root`.

    `names`: N paths relative to `root`, with `/`, sorted by code point, unique.
    `sizes` in bytes and `mtimes_ms` in milliseconds, N each.
    `skipped`: what was left out for a reason, sorted. `passed_over`: what else was there.
    """

    root: str
    names: tuple[str, ...]
    sizes: array[int]
    mtimes_ms: array[int]
    skipped: tuple[Skipped, ...] = ()
    passed_over: PassedOver = field(default=PassedOver(), compare=False)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every (name, size, time); the root is left out, so data may be moved."""
        total = hashlib.sha256()
        for name, size, mtime in self._rows():
            total.update(f"{name}\0{size} {mtime}\n".encode("utf-8", "surrogatepass"))
        return total.hexdigest()

    def path(self, index: int) -> str:
        """The full path of file `index`."""
        return self._below_root(self.names[index])

    def without(self, skipped: Iterable[Skipped]) -> Manifest:
        """Leave out the files that `skipped` names, and note them in `Manifest.skipped`."""
        more = {item.path: item for item in skipped}
        kept = [name not in more for name in self.names]
        return replace(
            self,
            names=tuple(compress(self.names, kept)),
            sizes=array("q", compress(self.sizes, kept)),
            mtimes_ms=array("q", compress(self.mtimes_ms, kept)),
            skipped=tuple(sorted({*self.skipped, *more.values()})),
        )

    def changed(self) -> tuple[list[str], list[str]]:
        """Names of files whose size or time is no longer as listed, and of those that cannot be found."""
        edited, gone = [], []
        for name, size, mtime in self._rows():
            stamp = _stamp(self._below_root(name))
            if stamp is None:
                gone.append(name)
            elif stamp != (size, mtime):
                edited.append(name)
        return edited, gone

    def restamped(self) -> Manifest:
        """The same files with the sizes and times that they have now; none may be gone."""
        stamps = [_stamp(self._below_root(name)) for name in self.names]
        sizes, times = zip(*(stamp for stamp in stamps if stamp is not None), strict=True)
        return replace(self, sizes=array("q", sizes), mtimes_ms=array("q", times))

    def _rows(self) -> Iterator[tuple[str, int, int]]:
        return zip(self.names, self.sizes, self.mtimes_ms, strict=True)

    def _below_root(self, name: str) -> str:
        # A `Path` for each of a million names would take longer than to ask for their size.
        return os.path.join(self.root, name.replace("/", os.sep))  # noqa: PTH118

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers for JSON; names may hold surrogates, so keep ASCII escapes on."""
        return {
            "root": self.root,
            "digest": self.digest,
            "names": list(self.names),
            "sizes": list(self.sizes),
            "mtimes_ms": list(self.mtimes_ms),
            "skipped": [vars(item) for item in self.skipped],
            "passed_over": asdict(self.passed_over),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Manifest:
        """The inverse of `to_dict`. Raises `InputError` when fields or the digest do not fit."""
        try:
            manifest = cls(
                str(data["root"]),
                tuple(map(str, data["names"])),
                array("q", map(int, data["sizes"])),
                array("q", map(int, data["mtimes_ms"])),
                tuple(Skipped(**{k: str(v) for k, v in item.items()}) for item in data["skipped"]),
                PassedOver(**data.get("passed_over", {})),  # runs of before have none,
            )
            if manifest.digest != data["digest"]:
                raise ValueError("its digest does not fit")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            detail = " ".join(str(error).split())
            raise InputError(f"saved list of files: damaged ({detail}); scan anew") from error
        return manifest


def _stamp(path: str) -> tuple[int, int] | None:
    """Size and time in ms of a regular file, or of the one whose page is named."""
    try:
        status = os.stat(page_of(path)[0])  # noqa: PTH116
    except (OSError, ValueError):  # a list that was edited may hold a NUL byte
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns // 1_000_000
