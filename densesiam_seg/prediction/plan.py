"""Which images become which files, decided before any work."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from densesiam_seg.errors import InputError, UsageError
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.io.files import longest_name, means_a_file
from densesiam_seg.io.records import read_records
from densesiam_seg.prediction.names import OVERLAY, fitting_names, mask_names, overlay_path

FAILED = "failed.jsonl"
_ENDS = {
    ".png": (b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"),
    ".jpg": (b"\xff\xd8\xff", b"\xff\xd9"),
}
"""The beginning and the end of the files that are written."""
_TRUE_COLOURS = re.compile(rb".{4}IHDR.{9}[\x02\x04\x06]", re.DOTALL)
"""What follows the beginning of a PNG in colours or with alpha: a photograph, while masks are palettes or grey."""


@dataclass(frozen=True)
class Plan:
    """Which images become which files."""

    folder: Path
    sources: tuple[str, ...]
    targets: tuple[Path, ...]
    done: int = 0
    """Masks of an earlier run that `resume` leaves as they are."""
    damaged: int = 0
    """Those that it makes again, as they or their overlays are not whole."""
    failures: Path | None = None
    """Where a job of several images lists those that failed."""
    noted: bool = False
    """Whether folders keep a note of the files written there (`io.outputs`), so that they are no inputs later."""
    shortened: int = 0
    """Names of masks that had to be cut, as the disk takes none of their length."""


def plan(
    manifest: Manifest,
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    overlays: bool = False,
) -> Plan:
    """Decide the name of every mask before any work.

    `out` is the mask's own name for one image when it ends in `.png`, else a folder that keeps sub-folders and stems.
    Raises UsageError for targets that exist already (unless `overwrite` or, where they are masks, `resume`) or would
    overwrite an input.
    """
    single = out.suffix.lower() == ".png" and not os.path.isdir(out)  # noqa: PTH112
    shortened = 0
    if single:
        if len(manifest) != 1:
            raise UsageError(
                f"--out {out}: is one file, but there are {len(manifest)} images; give a folder"
            )
        folder, targets = out.parent, [out]
    elif means_a_file(out):
        raise UsageError(f"--out {out}: masks are PNG; give a folder or a name ending in .png")
    elif os.path.exists(out) and not os.path.isdir(out):  # noqa: PTH110, PTH112
        raise UsageError(
            f"--out {out}: is a file of another kind; give a folder or a name ending in .png"
        )
    else:
        # An overlay's name is longer than its mask's.
        longest = longest_name(out) - (len(OVERLAY) - len(".png") if overlays else 0)
        names = mask_names(manifest.names)
        fitting = fitting_names(names, longest)
        shortened = sum(one != other for one, other in zip(names, fitting, strict=True))
        folder, targets = out, [out / name for name in fitting]
    sources = [manifest.path(index) for index in range(len(manifest))]
    inputs = {os.path.realpath(source) for source in sources}
    left: list[tuple[str, Path]] = []
    damaged = 0
    for source, target in zip(sources, targets, strict=True):
        written = (target, overlay_path(target)) if overlays else (target,)
        for path in written:
            if os.path.realpath(path) in inputs:
                raise UsageError(f"{path}: would overwrite an input image; give another --out")
            # A folder in a mask's place is the failure of that image alone.
            if not (overwrite or resume) and _exists(path) and not os.path.isdir(path):  # noqa: PTH112
                raise UsageError(
                    f"{path}: exists already; give --overwrite, --resume or another --out"
                )
        found = [_is_whole(path) for path in written if os.path.isfile(path)] if resume else []  # noqa: PTH113
        if len(found) < len(written) or not all(found):
            left.append((source, target))
            damaged += not all(found)
    failures = folder / FAILED if len(sources) > 1 else None
    if failures is not None:
        _require_own_list(failures)
    return Plan(
        folder,
        tuple(source for source, _ in left),
        tuple(target for _, target in left),
        done=len(sources) - len(left),
        damaged=damaged,
        failures=failures,
        noted=not single,
        shortened=shortened,
    )


def _require_own_list(path: Path) -> None:
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


def _exists(path: Path) -> bool:
    # `Path.exists` raises where a folder may not be entered or a name is too long.
    return os.path.lexists(path)


def _is_whole(path: Path) -> bool:
    """Whether a mask or an overlay of an earlier run is complete, as far as its two ends tell.

    A copy that broke off or a full disk may have left an empty file, a part of one, or zeros. Raises UsageError for a
    file of another kind.
    """
    start, end = _ENDS[path.suffix.lower()]
    try:
        with path.open("rb") as file:
            head = file.read(len(start))
            of_colours = path.suffix.lower() == ".png" and _TRUE_COLOURS.match(file.read(18))
            file.seek(-min(len(end), file.seek(0, os.SEEK_END)), os.SEEK_END)
            tail = file.read()
    except OSError:
        return False
    if of_colours or (head.strip(b"\0") and not start.startswith(head)):
        raise UsageError(
            f"{path}: exists already and is no mask of an earlier run; give --overwrite or another --out"
        )
    return (head, tail) == (start, end)
