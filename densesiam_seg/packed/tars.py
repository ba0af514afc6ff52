"""What a tar holds and where: all headers read once, none of them kept.

Nobody vouches for a tar. Whatever its headers claim, reading ends, and takes no more memory than a header may have.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from densesiam_seg.io.files import open_regular
from densesiam_seg.packed.members import MOST_HEADER, SUFFIX, is_plain, plain_name

Kind: TypeAlias = Literal["file", "link", "sparse", "folder", "device"]

COMPRESSED = {
    ".gz": "gunzip",
    ".bz2": "bunzip2",
    ".xz": "unxz",
    ".zst": "unzstd",
    ".tgz": "gunzip",
    ".tbz2": "bunzip2",
    ".tbz": "bunzip2",
    ".txz": "unxz",
    ".tzst": "unzstd",
}
"""Suffixes of compressed tars, the longer ones behind `.tar` too, and what makes a tar of them again."""
_BLOCK = 512
_AT_ITS_END = ("unexpected end of data", "truncated header", "empty header")
"""What `tarfile` says where a tar is cut off inside a member or between the headers of one."""
_BEHIND = 1 << 16
"""Bytes behind the end of a tar that are looked at: programs fill up to a whole record."""


class TarError(Exception):
    """A tar that cannot be read to its end: a kebab-case class, what is wrong as a part of a sentence, what to do."""

    def __init__(self, reason: str, detail: str, remedy: str) -> None:
        super().__init__(f"{detail}; {remedy}")
        self.reason = reason


class Entry(NamedTuple):
    """A member of a tar: its name as it stands there, what it is, where its header begins, and its content's bytes."""

    name: str
    kind: Kind
    offset: int
    size: int


def is_tar(name: str) -> bool:
    """Whether a file of this name is taken for a tar."""
    return name[-len(SUFFIX) :].lower() == SUFFIX


def decompressor(name: str) -> str:
    """The program that makes a tar of a file with this name; empty where that is no compressed tar."""
    stem, dot, suffix = name.lower().rpartition(".")
    short = suffix.startswith("t")
    return COMPRESSED.get(dot + suffix, "") if short or stem.endswith(SUFFIX) else ""


def entries(path: str) -> Iterator[Entry]:
    """The members in their order. Raises OSError, and TarError as soon as something is wrong."""
    with _Headers(open_regular(Path(path)).detach()) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if not size:
            raise TarError("empty", "is empty (0 bytes)", "copy it again or remove it")
        before = -1
        tar = _first(file)
        while (entry := _next(tar)) is not None:
            end = entry.offset_data + entry.size
            if not before < entry.offset < entry.offset_data or entry.size < 0:
                raise _damaged(entry.offset)
            if is_plain(entry) and end > size:
                raise _truncated()
            before = entry.offset
            yield Entry(entry.name, _kind(entry), entry.offset, entry.size)
        _require_end(file, tar.offset)


def places(path: str) -> dict[str, tuple[int, int]]:
    """Where the header of each file in a tar begins and how many bytes it has, by its plain name, the last of a name.

    Raises OSError and TarError.
    """
    found = ((plain_name(each.name), each) for each in entries(path) if each.kind == "file")
    return {name: (each.offset, each.size) for name, each in found if name}


def _first(file: _Headers) -> tarfile.TarFile:
    start = file.read(_BLOCK)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise TarError(
            "compressed",
            "is a compressed tar, in which no image has a place of its own",
            "unpack it to a plain .tar",
        )
    file.seek(0)
    try:
        return tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")
    except OSError:
        raise
    except Exception as error:
        if len(start) < _BLOCK or str(error) in _AT_ITS_END:
            raise _truncated() from error
        if start[257:262] == b"ustar":
            raise _damaged(0) from error
        raise TarError("corrupt", "is no tar", "rename or remove it") from error


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member, and none of those before it stays in memory."""
    try:
        entry = tar.next()
    except OSError:
        raise
    except Exception as error:  # a malformed header raises what it likes
        if str(error) in _AT_ITS_END:
            raise _truncated() from error
        raise _damaged(tar.offset) from error
    tar.members.clear()  # type: ignore[attr-defined]
    return entry


def _require_end(file: _Headers, offset: int) -> None:
    """Raises TarError where the members do not end as those of a whole tar, at `offset`."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if block.strip(b"\0"):
        raise _damaged(offset) if len(block) == _BLOCK else _truncated()
    behind = file.read(_BEHIND).lstrip(b"\0")
    if len(behind) > _BLOCK // 2:
        # A header begins with a name, so at most its end is zeros.
        file.seek(-len(behind), io.SEEK_CUR)
        if _is_header(file.read(_BLOCK)):
            raise TarError(
                "joined",
                "goes on behind its end, as tars do that were joined by cat",
                "join them by tar --concatenate, or give them one by one",
            )


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except Exception:
        return False
    return True


def _kind(entry: tarfile.TarInfo) -> Kind:
    if entry.issparse():
        return "sparse"
    if entry.isreg():
        return "file"
    if entry.isdir():
        return "folder"
    return "link" if entry.issym() or entry.islnk() else "device"


def _truncated() -> TarError:
    return TarError("truncated", "ends too early", "copy it again from its source or remove it")


def _damaged(offset: int) -> TarError:
    return TarError(
        "corrupt",
        f"is damaged at byte {offset:,}",
        "copy it again from its source or remove it",
    )


class _Headers(io.BufferedReader):
    """A tar of which nothing but headers is read, whatever length they claim."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)
