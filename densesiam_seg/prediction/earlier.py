"""Files of an earlier prediction: whether they are such files at all, whole, and not older than their image.

What made them is told by the folder's record (`peers.record`).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from densesiam_seg.errors import InputError, UsageError, counted
from densesiam_seg.events import Notice, Predicted
from densesiam_seg.io.files import open_regular
from densesiam_seg.io.records import read_records
from densesiam_seg.peers.record import RECORD, Record

if TYPE_CHECKING:
    from densesiam_seg.prediction.plan import Plan

FRAMES = "frame_*"
"""What the files of frames are called."""

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


class State(Enum):
    """How the files of an image or frame are, all together."""

    KEPT = "whole, and what would be made again"
    ABSENT = "some or all not there"
    DAMAGED = "not whole"
    OUTDATED = "older than the image"


def state_of(files: Collection[Path], changed: int, record: Record | None) -> State:
    """How the files of an image are that was changed last at that time, in milliseconds.

    Raises UsageError for files of another kind, and for those that were there before the masks of the record, unless
    that says that such files may be replaced.
    """
    times = {path: time for path in files if (time := _written(path)) is not None}
    if any(is_older(path, time, record) for path, time in times.items()):
        return State.ABSENT
    try:
        # Each of them: one that is not whole is no excuse for a stranger's beside it.
        found = [is_whole(path) for path in times]
    except UsageError:
        if record is None or not record.replaces:
            raise
        found = [False]
    if not all(found):
        return State.DAMAGED
    if len(times) < len(files):
        return State.ABSENT
    return State.KEPT if min(times.values()) // 1_000_000 >= changed else State.OUTDATED


def require_own(paths: Iterable[Path], record: Record | None) -> None:
    """Raises UsageError for files that were there before the masks of the record, if it replaces none."""
    for path in paths:
        time = _written(path)
        if time is not None:
            is_older(path, time, record)


def is_older(path: Path, time: int, record: Record | None) -> bool:
    """Whether a file of that time, in nanoseconds, was there before the masks of the record, and may be replaced.

    Raises UsageError if it may not.
    """
    if record is None or time >= record.since:
        return False
    if record.replaces:
        return True
    raise UsageError(
        f"{path}: was there before the masks of this job (as {RECORD} tells); "
        "give --overwrite or another --out"
    )


def _written(path: Path) -> int | None:
    """When a regular file was written, in nanoseconds; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_mtime_ns if stat.S_ISREG(status.st_mode) else None


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


@dataclass
class Earlier:
    """The images of a plan whose files are there already, and the places of those that are `left` to be done."""

    work: Plan
    record: Record | None
    tell: Callable[[Notice], object]
    left: array[int] = field(default_factory=lambda: array("q"))

    def kept(self) -> Iterator[Predicted]:
        """The images whose files stay. Raises UsageError before anything is written."""
        work, again = self.work, Counter[State]()
        for place in range(len(work.places)):
            if place >= work.stills:
                # The others are looked at one by one.
                require_own(work.targets[place].glob(FRAMES), self.record)
                self.left.append(place)
                continue
            files = work.files(place)
            state = state_of(files.values(), work.stamp(place), self.record)
            if state is State.KEPT:
                mask = list(files.values())[-1]
                yield Predicted(work.sources[place], mask, files=files, kept=True)
            else:
                self.left.append(place)
                again[state] += 1
        for state in (State.DAMAGED, State.OUTDATED):
            if again[state]:
                text = (
                    f"{counted(again[state], 'mask')} of an earlier run {state.value}: made again"
                )
                self.tell(Notice(text, warning=True))
