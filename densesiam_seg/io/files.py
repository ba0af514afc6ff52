"""Atomic files: a file is either the old or the new one, whatever happens in between.

A file is written beside its destination, flushed to the disk and renamed over it. A process that is killed leaves the
old file and a `.tmp-…` one, which `remove_leftovers` deletes.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, TypeAlias

from densesiam_seg.errors import OutputError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
"""What a JSON file can hold."""

_LEFTOVER = re.compile(r"\.(?:tmp|del)-[0-9]+-[0-9a-f]+")

FILE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp"}
    | {".dib", ".gif", ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jxl", ".pgm", ".ppm"}
    | {".pbm", ".pnm", ".tga", ".exr", ".psd", ".ico", ".svg", ".pdf", ".eps", ".dcm", ".nii"}
    | {".npy", ".npz", ".mat", ".h5", ".hdf5", ".parquet", ".json", ".jsonl", ".csv", ".tsv"}
    | {
        ".mp4",
        ".m4v",
        ".mkv",
        ".avi",
        ".mov",
        ".webm",
        ".html",
        ".htm",
        ".md",
        ".log",
        ".txt",
        ".xml",
        ".yaml",
        ".yml",
        ".toml",
        ".zip",
        ".tar",
        ".gz",
        ".tgz",
        ".7z",
    }
    | {".pth", ".pt", ".ckpt", ".onnx", ".safetensors", ".pkl"}
)
"""Suffixes by which people mean a file: pictures, arrays, tables, archives, weights. No folder is created so."""

_OF_THE_DISK = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.ESTALE}
    | {errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
"""Failures that the next file would meet as well."""

_REMEDIES = {
    errno.ENOSPC: "free some space or choose another place with --out",
    errno.EDQUOT: "free some space or choose another place with --out",
    errno.EFBIG: "choose a place that allows larger files with --out",
    errno.EACCES: "choose a place you may write to with --out",
    errno.EPERM: "choose a place you may write to with --out",
    errno.EROFS: "choose a place you may write to with --out",
    errno.EIO: "check the disk or choose another place with --out",
}


def output_error(path: Path, error: OSError) -> OutputError:
    """The error for a user whose `path` could not be written because of `error`."""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "choose another place with --out")
    return OutputError(f"{path}: cannot be written ({reason}); {remedy}")


def concerns_one_file(error: OutputError) -> bool:
    """Whether the file itself could not be written, such as for its name, while others may fare better."""
    cause = error.__cause__
    return not (isinstance(cause, OSError) and cause.errno in _OF_THE_DISK)


def means_a_file(path: Path) -> bool:
    """Whether a place to write into is called like a file of some kind, and is no folder yet."""
    return path.suffix.lower() in FILE_SUFFIXES and not os.path.isdir(path)  # noqa: PTH112


def longest_name(folder: Path) -> int:
    """Most bytes of a name on the disk where `folder` is or would be created."""
    try:
        return os.pathconf(_existing(folder), "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows, and disks that do not tell
        return 255


@contextmanager
def replacing(path: Path, *, sync: bool = True, sync_name: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends, and vanishes when the block fails.

    With `sync` the content is on the disk before the name is; without, a power cut may leave an empty file. With
    `sync_name` too the name is there when the block has ended; a writer of many files may put all names there at the
    end (`sync_folders`). Raises OutputError for every failure of the operating system, also for those of the block's
    own writes.
    """
    fresh = temporary_name(path)
    try:
        _refuse_special(path)
        try:
            with fresh.open("xb") as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            fresh.replace(path)
        except BaseException:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise
        if sync and sync_name:
            sync_folder(path.parent)
    except OSError as error:
        raise output_error(path, error) from error


def _refuse_special(path: Path) -> None:
    """Refuse a rename over a device such as `/dev/null` or a pipe, which would replace it. Raises OutputError."""
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "device or pipe"
        raise OutputError(f"{path}: is a {kind}; give the name of a file")


def replace_file(path: Path, data: bytes, *, sync: bool = True, sync_name: bool = True) -> None:
    """Write `data` to `path` wholly or not at all, as `replacing` does. Raises OutputError."""
    with replacing(path, sync=sync, sync_name=sync_name) as file:
        file.write(data)


def replace_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` wholly or not at all. Raises OutputError."""
    replace_file(path, text.encode("utf-8"))


def replace_json(path: Path, value: JSON, *, sync: bool = True) -> None:
    """Write `value` as indented JSON to `path` wholly or not at all. Raises OutputError."""
    replace_file(path, f"{to_json(value, indent=2)}\n".encode("ascii"), sync=sync)


def to_json(value: JSON, *, indent: int | None = None) -> str:
    """JSON text in ASCII, so that every file name survives; NaN and infinities, which JSON lacks, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: JSON) -> JSON:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the place of `path` when the block ends, and vanishes when the block fails.

    Its files are the block's to write durably (`replace_file`). A folder that lies at `path` is there until the new one
    is complete; what the new one lacks of it is copied over, so that nothing of other people's is lost. Raises
    OutputError for every failure of the operating system.
    """
    fresh = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        try:
            yield fresh
            old = _retired_name(path) if path.exists() else None
            if old is not None:
                _keep_strangers(path, fresh)
            sync_folder(fresh)
            if old is not None:
                path.rename(old)
            try:
                fresh.rename(path)
            except OSError:
                if old is not None:
                    old.rename(path)
                raise
        except BaseException:
            remove(fresh)
            raise
        sync_folder(path.parent)
        if old is not None:
            remove(old)
    except OSError as error:
        raise output_error(path, error) from error


def _keep_strangers(path: Path, fresh: Path) -> None:
    """Copy from the folder at `path` what `fresh` lacks."""
    for entry in path.iterdir():
        copy = fresh / entry.name
        if is_leftover(entry) or copy.exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, copy, symlinks=True)
        else:
            shutil.copy2(entry, copy, follow_symlinks=False)


def make_folder(folder: Path) -> Path:
    """Create `folder` and its parents where they are absent, and return it. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    return folder


def free_space(folder: Path) -> int:
    """Free bytes on the disk where `folder` is or would be created. Raises OutputError."""
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError as error:
        raise output_error(folder, error) from error


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that exists."""
    existing = folder.absolute()
    while not os.path.exists(existing) and existing != existing.parent:  # noqa: PTH110
        existing = existing.parent
    return existing


def sync_folders(folders: Iterable[Path]) -> None:
    """Put the names in each of the folders on the disk. Raises OutputError."""
    for folder in folders:
        try:
            sync_folder(folder)
        except OSError as error:
            raise output_error(folder, error) from error


def sync_folder(folder: Path) -> None:
    """Put the names in `folder` on the disk. Raises OSError.

    Does nothing on systems and network disks that cannot do this for a folder.
    """
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


class NotRegularError(OSError):
    """A folder, pipe or device where a file is wanted."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading; a pipe, which would wait for ever, a device or a folder raises NotRegularError."""
    _require_regular(path, path.stat())
    # The name may mean another file by now: do not block on it, and check again.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _require_regular(path, os.fstat(file.fileno()))
    except NotRegularError:
        file.close()
        raise
    return file


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError(errno.EINVAL, "Not a regular file", str(path))


def discard(path: Path) -> None:
    """Delete a file or folder, renamed first so that its name never holds a part of it. Raises OSError."""
    remove(path.rename(_retired_name(path)))


def _retired_name(path: Path) -> Path:
    return path.with_name(f".del-{os.getpid()}-{secrets.token_hex(4)}")


def temporary_name(path: Path) -> Path:
    """A name beside `path` for something that is not finished."""
    return path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}")


def is_leftover(path: Path) -> bool:
    """Whether `path` has a name that only unfinished writes and deletions of this program have."""
    return _LEFTOVER.fullmatch(path.name) is not None


def remove_leftovers(folder: Path, *, seconds: float = 0.0) -> None:
    """Delete what killed processes left in `folder`, if it is older than so many seconds.

    Without an age this is only for the process that holds the folder's lock. What cannot be deleted stays: leftovers
    are never read, and the next call tries again.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if is_leftover(path) and time.time() - path.lstat().st_mtime >= seconds:
                remove(path)


def remove(path: Path) -> None:
    """Delete a file or a whole folder as far as that is possible; a link is deleted, never followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
