"""Files of an earlier prediction: whether they are whole, and whether they are such files at all."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np

from densesiam_seg.errors import InputError, UsageError
from densesiam_seg.io.files import open_regular
from densesiam_seg.io.records import read_records

_ENDS = {
    ".png": (b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"),
    ".jpg": (b"\xff\xd8\xff", b"\xff\xd9"),
}
"""The beginning and the end of pictures."""
_STARTS = {".tif": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), ".npy": (b"\x93NUMPY",)}
"""The beginnings of files whose end tells nothing."""
_TRUE_COLOURS = re.compile(rb".{4}IHDR.{9}[\x02\x04\x06]", re.DOTALL)
"""What follows the beginning of a PNG in colours or with alpha: a photograph, while masks are palettes or grey."""
_GREY, _PALETTE = 1, 3


def is_whole(path: Path) -> bool:
    """Whether a file of an earlier run is complete, as far as its two ends or its header tell.

    A copy that broke off or a full disk may have left an empty file, a part of one, or zeros. Raises UsageError for a
    file of another kind.
    """
    suffix = ".tif" if path.suffix.lower() == ".tiff" else path.suffix.lower()
    starts = _STARTS.get(suffix) or (_ENDS[suffix][0],)
    try:
        with path.open("rb") as file:
            head = file.read(len(starts[0]))
            coloured = suffix == ".png" and _TRUE_COLOURS.match(file.read(18))
            end = _ENDS[suffix][1] if suffix in _ENDS else b""
            file.seek(-min(len(end), file.seek(0, os.SEEK_END)), os.SEEK_END)
            tail = file.read()
    except OSError:
        return False
    if coloured or (head.strip(b"\0") and not any(start.startswith(head) for start in starts)):
        raise _of_another_kind(path)
    if suffix in _ENDS:
        return head in starts and tail == end
    return head in starts and (_tiff_is_whole if suffix == ".tif" else _array_is_whole)(path)


def _array_is_whole(path: Path) -> bool:
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # its header says more than there is
        return False
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise _of_another_kind(path)
    return True


def _tiff_is_whole(path: Path) -> bool:
    """Whether all of its strips lie in the file."""
    from tifffile import TiffFile

    try:
        with open_regular(path) as file:
            tiff = TiffFile(file, name=path.name)
            page = tiff.pages.first
            kind, samples = page.photometric, page.samplesperpixel
            data = zip(page.dataoffsets, page.databytecounts, strict=True)
            ends = [sum(each) for each in data]
            # Tags that lie beyond the end are left out without a word.
            form = tiff.tiff
            file.seek(page.offset)
            (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
            ends.append(file.tell() + tags * form.tagsize + form.offsetsize)
            size = tiff.filehandle.size
            whole = len(page.dataoffsets) == np.prod(page.chunked) and all(page.databytecounts)
            whole = whole and tags == len(page.tags)
    except Exception:  # a damaged file makes it raise what it likes
        return False
    if samples != 1 or kind not in (_GREY, _PALETTE):
        raise _of_another_kind(path)
    return bool(whole) and max(ends) <= size


def _of_another_kind(path: Path) -> UsageError:
    return UsageError(
        f"{path}: exists already and is no mask of an earlier run; give --overwrite or another --out"
    )


def require_own_list(path: Path) -> None:
    """Raises UsageError for a file in the place of the list of failures that no prediction wrote."""
    if not os.path.isfile(path):  # noqa: PTH113
        return  # a folder there is told when the list is written
    try:
        own = all(record.keys() == {"path", "reason", "message"} for record in read_records(path))
    except InputError:
        own = False
    if not own:
        raise UsageError(
            f"{path}: is no list of an earlier prediction; move it away or give another --out"
        )
