"""Tars for tests: sound ones, and blocks of which unsound ones are made."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_tar(
    path: Path,
    members: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    form: int = tarfile.PAX_FORMAT,
) -> Path:
    """A tar of files in the order that is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = members.items() if isinstance(members, Mapping) else members
    with tarfile.open(path, "w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in pairs:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def pack(tar: Path, *files: Path) -> Path:
    """A tar of files under their own names."""
    return write_tar(tar, {file.name: file.read_bytes() for file in files})


def pack_in_two(folder: Path, out: Path) -> Path:
    """The files of a folder in two tars, `a.tar` and `b.tar`, in the order of their names; returns the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(folder.iterdir())
    pack(out / "a.tar", *names[: len(names) // 2])
    pack(out / "b.tar", *names[len(names) // 2 :])
    return out


def header(name: str, size: int | bytes = 0, kind: bytes = b"0", link: str = "") -> bytes:
    """A header of 512 bytes as POSIX describes it, made by hand; a size in bytes stands as it is."""
    field = size if isinstance(size, bytes) else f"{size:011o}".encode() + b"\0"
    block = bytearray(512)
    block[: len(name.encode())] = name.encode()
    block[100:124] = b"0000644\0" * 3
    block[124:136] = field
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(link)] = link.encode()
    block[257:265] = b"ustar\x0000"
    block[148:156] = f"{sum(block):06o}".encode() + b"\0 "
    return bytes(block)


def filled(content: bytes) -> bytes:
    """Content up to a whole number of blocks."""
    return content + bytes(-len(content) % 512)


END = bytes(1024)
"""What a tar ends with."""


def number(value: int) -> bytes:
    """A size field in base 256, as for large and for negative numbers."""
    sign = b"\xff" if value < 0 else b"\x80"
    return sign + (value % 2**88).to_bytes(11, "big")
