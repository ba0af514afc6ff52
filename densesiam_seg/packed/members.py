"""The file, or the member of a tar, that a path means.

`/data/x.tar/@1536+20480/a/7.jpg` is `a/7.jpg` of `/data/x.tar`, whose header begins at byte 1,536 and whose content has
20,480 bytes. With that any process opens it at once, and needs no list of what the tar holds. People are shown
`/data/x.tar/a/7.jpg`.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from densesiam_seg.errors import ImageError
from densesiam_seg.io.files import open_regular

SUFFIX = ".tar"
MOST_HEADER = 1 << 20
"""Bytes that may lie between the place of a member and its content: long names and other attributes."""
_HEADER = 1536
"""The same as nearly always: the header alone, or with one more for a long name."""
_AT_ONCE = 1 << 20
"""Members of at most so many bytes are read at once; of larger ones no more than is asked for."""
_LARGE_READ = 1 << 20
"""Bytes from which it is worth asking whether a file has them."""
_PLACE = re.compile(r"\.tar/@([0-9]{1,18})\+([0-9]{1,18})/(?=.)", re.IGNORECASE | re.DOTALL)

_ABOVE = re.compile(r"\.tar(?=/)", re.IGNORECASE)


@dataclass(frozen=True)
class Member:
    """A file in a tar: its name there (`plain_name`), where its header begins, and the bytes of its content."""

    tar: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}/{self.name}"

    @property
    def path(self) -> str:
        """The path by which it is opened."""
        return f"{self.tar}/@{self.offset}+{self.size}/{self.name}"


def member_of(path: str) -> Member | None:
    """The member that a path means; None for any other path."""
    if "/@" not in path:  # as nearly always
        return None
    for found in _PLACE.finditer(path):
        tar = path[: found.start() + len(SUFFIX)]
        if not os.path.isdir(tar):  # noqa: PTH112 - a folder may be called so
            return Member(tar, path[found.end() :], int(found[1]), int(found[2]))
    return None


def as_shown(path: str) -> str:
    """A path as people know it: of a member without its place."""
    member = member_of(path)
    return path if member is None else str(member)


def tar_above(path: str) -> str:
    """The tar in which a path lies that names a member as people do, `/data/x.tar/a/7.jpg`; empty for any other."""
    for found in _ABOVE.finditer(path):
        if os.path.isfile(path[: found.end()]):  # noqa: PTH113
            return path[: found.end()]
    return ""


def plain_name(name: str) -> str:
    """A member's name as a path below its tar; empty where it is none, or leads out of it.

    Programs write `./a.jpg`, and `/a.jpg` as older ones of tar did; both are `a.jpg`.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "" if ".." in parts or "\0" in name else "/".join(parts)


def is_plain(entry: tarfile.TarInfo) -> bool:
    """Whether an entry of a tar is a file whose content lies there in one piece."""
    return entry.isreg() and not entry.issparse()


def open_file(path: str) -> BinaryIO:
    """Open a file, or a member of a tar as if it were one, for reading from its start.

    No more memory is set aside for a read than there are bytes left, whatever length a header claims. Raises OSError,
    and ImageError where a tar has something else in a member's place.
    """
    member = member_of(path)
    if member is None:
        return _Bounded(open_regular(Path(path)).detach())
    file = open_regular(Path(member.tar)).detach()
    try:
        start, content = _located(file, member)
        if len(start) >= content + member.size:
            file.close()
            return io.BytesIO(start[content : content + member.size])
        return _Bounded(_Part(cast("io.FileIO", file), member.offset + content, member.size))
    except BaseException:
        file.close()
        raise


def piece_of(path: str) -> tuple[str, int, int] | None:
    """The tar that holds a member, and the first byte and the number of bytes of its content; None for a file.

    Raises OSError, and ImageError where the tar has something else in its place.
    """
    member = member_of(path)
    if member is None:
        return None
    with closing(open_regular(Path(member.tar)).detach()) as file:
        _, content = _located(file, member)
    return member.tar, member.offset + content, member.size


def _located(file: io.RawIOBase, member: Member) -> tuple[bytes, int]:
    """What is read from the place of a member, and where its content begins in that."""
    for header in (_HEADER, MOST_HEADER):
        start = _read(file, member.offset, min(member.size, _AT_ONCE) + header)
        entry = _entry(start)
        if entry is not None:
            same = plain_name(entry.name) == member.name and entry.size == member.size
            end = member.offset + entry.offset_data + member.size
            if same and is_plain(entry) and end <= os.fstat(file.fileno()).st_size:
                return start, entry.offset_data
            break
    raise ImageError(
        str(member),
        "replaced",
        "is not where it was in the tar, which has been changed since it was looked through",
        "run the command again, or put the old tar back",
    )


def _read(file: io.RawIOBase, offset: int, size: int) -> bytes:
    """Up to `size` bytes from `offset` on."""
    file.seek(offset)
    found = file.read(size) or b""
    while len(found) < size and (more := file.read(size - len(found))):
        found += more  # a network disk may give less than it has
    return found


def _entry(start: bytes) -> tarfile.TarInfo | None:
    """The entry of a tar that these bytes begin with; None where they begin with no header, or end in it."""
    try:
        entry = tarfile.TarInfo.frombuf(start[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        if entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE):  # nearly always, and much cheaper
            entry.offset_data = tarfile.BLOCKSIZE
            return entry
        with tarfile.TarFile(
            fileobj=io.BytesIO(start), mode="r", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            found = tar.next()
    except Exception:  # a malformed header raises what it likes
        return None
    return found if found is not None and 0 < found.offset_data <= len(start) else None


class _Bounded(io.BufferedReader):
    """A file that sets aside no more memory for a read than it has bytes left."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGE_READ:
            raw = self.raw
            end = raw.size if isinstance(raw, _Part) else os.fstat(self.fileno()).st_size
            size = min(size, max(end - self.tell(), 0))
        return super().read(size)


class _Part(io.RawIOBase):
    """Some bytes of a file as a file; it has no number of its own, so that nobody reads around it."""

    def __init__(self, file: io.FileIO, start: int, size: int) -> None:
        super().__init__()
        self.size = size
        self._file, self._start, self._place = file, start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("a place before the start of a file")
        self._place = base + offset
        return self._place

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        room = memoryview(buffer)[: max(self.size - self._place, 0)]
        self._file.seek(self._start + self._place)
        count = self._file.readinto(room)
        self._place += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
