"""`predict`: images → masks at their own size, under their own names.

Each core processes whole images, from the file to the mask; memory does not grow with their number.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torch import Tensor

from densesiam_seg.errors import (
    DenseSiamError,
    ImageError,
    InputError,
    OutputError,
    PartialError,
    StoppedError,
    UsageError,
)
from densesiam_seg.events import Predicted
from densesiam_seg.images.decode import load_image
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.manifest import Manifest, Skipped
from densesiam_seg.inference.batching import Group, groups
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import (
    concerns_one_file,
    longest_name,
    make_folder,
    means_a_file,
    output_error,
    remove_leftovers,
    replace_file,
    sync_folders,
)
from densesiam_seg.io.outputs import note_outputs
from densesiam_seg.io.parallel import device_lock, on_own_cores
from densesiam_seg.io.records import Records, read_records
from densesiam_seg.io.signals import stop_requests
from densesiam_seg.pictures.masks import encode_jpeg, overlay, write_mask

FAILED = "failed.jsonl"
MAX_BATCH_SIZE = 1024
LEFTOVER_SECONDS = 3600.0
"""Age from which on an unfinished file in a folder of masks is one that a killed process left."""
_OVERLAY = "_overlay.jpg"
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
        longest = longest_name(out) - (len(_OVERLAY) - len(".png") if overlays else 0)
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


def mask_names(names: Sequence[str]) -> list[str]:
    """`a/x.jpg` → `a/x.png`, but `a/x.jpg.png` where another image is called `a/x` too."""
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    # `x.jpg.jpg` must not become the `x.jpg.png` that `x.jpg` becomes beside `x.png`, nor the folder `x.png`.
    taken = Counter([*stems, *names])
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    taken.update(folder.removesuffix(".png") for folder in folders if folder.endswith(".png"))
    return [
        f"{stem if taken[stem] == 1 else name}.png" for stem, name in zip(stems, names, strict=True)
    ]


def fitting_names(names: Sequence[str], longest: int) -> list[str]:
    """The names of masks, unique as before, with no part of more than `longest` bytes.

    `stem.png` becomes `st-01234567.png`: its beginning, and the first digits of the SHA-256 of the whole of it.
    """
    fitting: list[str] = []
    taken: set[str] = set()
    for name in names:
        found = name
        if (
            len(os.fsencode(name)) > longest
        ):  # a path that is as short as that has no part that is longer
            digits = 8
            while (found := _cut(name, longest, digits)) in taken:
                digits *= 2
                assert digits <= 64, "names are unique"
            taken.add(found)
        fitting.append(found)
    return fitting


def _cut(name: str, longest: int, digits: int) -> str:
    *folders, last = name.split("/")
    stem = last.removesuffix(".png")
    return "/".join(
        [
            *(_cut_part(folder, "", longest, digits) for folder in folders),
            _cut_part(stem, ".png", longest, digits),
        ]
    )


def _cut_part(stem: str, suffix: str, longest: int, digits: int) -> str:
    whole = os.fsencode(stem + suffix)
    if len(whole) <= longest:
        return stem + suffix
    end = f"-{hashlib.sha256(whole).hexdigest()[:digits]}{suffix}"
    room, kept = longest - len(end), 0
    while (room := room - len(os.fsencode(stem[kept]))) >= 0:
        kept += 1
    # Not between a letter and its accent.
    while kept and unicodedata.category(stem[kept]).startswith("M"):
        kept -= 1
    return stem[:kept] + end


def overlay_path(mask: Path) -> Path:
    """Where the overlay of a mask lies."""
    return mask.with_name(mask.stem + _OVERLAY)


def predict_events(
    segmenter: Segmenter,
    work: Plan,
    *,
    overlays: bool = False,
    decoding: Decoding | None = None,
    batch_size: int | None = None,
    refinement: Refinement = AS_TRAINED,
) -> Iterator[Predicted]:
    """Write the planned masks (and overlays); one event per image, in the order of the plan.

    Images are read as `decoding` says (None: as those of the training were). `batch_size` images of one working size
    pass the network together (None: `batching.images_together`). A mask does not depend on the other images or the
    number of cores; another batch size may round its logits differently. Images that cannot be read, or whose own files
    cannot be written, are reported as events and listed in `failed.jsonl`.

    Raises UsageError, OutputError for a disk that takes no more, and StoppedError when a signal asks to stop: every
    mask on the disk is whole.
    """
    if batch_size is not None and not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise UsageError(f"--batch-size {batch_size}: must be 1 to {MAX_BATCH_SIZE}, or auto")
    decoding = decoding or segmenter.new_decoding()
    make_folder(work.folder)
    closed = _prepare_folders(work, overlays)
    if work.failures is not None:
        try:
            work.failures.unlink(missing_ok=True)
        except OSError as error:
            raise output_error(work.failures, error) from error

    def until_stopped() -> Iterator[Group]:
        for group in groups(segmenter, work.sources, batch_size, decoding):
            if stop:
                raise StoppedError("stopped; finish with --resume", stop.number)
            yield group

    lock = device_lock(segmenter.device)
    job = _Job(segmenter, work, overlays, decoding, refinement, lock, closed)
    with stop_requests() as stop, closing(on_own_cores(job.do, until_stopped())) as found:
        for result in _in_order(found):
            if result.error is not None and work.failures is not None:
                with Records(work.failures) as records:
                    records.append(_failure(result.image, result.error))
            yield result
    sync_folders({target.parent for target in work.targets} - closed.keys())


def _failure(image: str, error: ImageError | OutputError) -> dict[str, str]:
    """The record of an image that failed."""
    reason = error.reason if isinstance(error, ImageError) else "not-written"
    return {"path": image, "reason": reason, "message": str(error)}


def _prepare_folders(work: Plan, overlays: bool) -> dict[Path, OutputError]:
    """Make the folders of the masks and note what will be written there; returns why some of them take nothing."""
    names: dict[Path, list[str]] = {}
    for target in work.targets:
        written = [target.name, overlay_path(target).name] if overlays else [target.name]
        names.setdefault(target.parent, []).extend(written)
    closed: dict[Path, OutputError] = {}
    for folder in sorted(names):
        try:
            make_folder(folder)
            # Others may be writing there at this moment: folders of masks have no lock.
            remove_leftovers(folder, seconds=LEFTOVER_SECONDS)
            if work.noted:
                note_outputs(folder, names[folder])
        except OutputError as error:
            if folder == work.folder or not concerns_one_file(error):
                raise
            closed[folder] = error
    return closed


@dataclass(frozen=True)
class _Job:
    """What is done with each group of images, in several threads at once."""

    segmenter: Segmenter
    work: Plan
    overlays: bool
    decoding: Decoding
    refinement: Refinement
    lock: AbstractContextManager[object]
    closed: Mapping[Path, OutputError]

    def do(self, group: Group) -> dict[int, Predicted]:
        """The results of a group by the places of its images."""
        results: dict[int, Predicted] = {}
        # All of one shape, unless a file has changed since its header was read.
        by_shape: dict[torch.Size, list[tuple[int, Tensor, tuple[int, int]]]] = {}
        for place in group.places:
            source = self.work.sources[place]
            closed = self.closed.get(self.work.targets[place].parent)
            if closed is not None:
                results[place] = Predicted(source, None, closed)
                continue
            try:
                image, size = self.segmenter.read(source, decoding=self.decoding)
            except ImageError as error:
                results[place] = Predicted(source, None, error)
            else:
                by_shape.setdefault(image.shape, []).append((place, image, size))
        for ready in by_shape.values():
            images = [image for _, image, _ in ready]
            # The last bits of a forward pass may depend on the size of its batch, so that is always the same.
            images += images[-1:] * (group.full - len(images))
            batch = torch.cat(images)
            with self.lock:
                logits = self.segmenter.scores(batch, self.refinement, len(ready)).cpu()
            for scores, (place, _, size) in zip(logits, ready, strict=False):
                results[place] = self._write(place, scores, size)
        return results

    def _write(self, place: int, logits: Tensor, size: tuple[int, int]) -> Predicted:
        """Logits (K, h, w) → the files of an image of that size (H, W)."""
        source, target = self.work.sources[place], self.work.targets[place]
        mask = self.segmenter.mask(logits, *size)
        try:
            if self.overlays:
                image = load_image(source, self.decoding)
                picture = overlay(image.permute(1, 2, 0).numpy(), mask, self.segmenter.palette)
                encoded = encode_jpeg(Image.fromarray(picture))
                replace_file(overlay_path(target), encoded, sync_name=False)
            write_mask(target, mask, self.segmenter.palette)
        except ImageError as error:
            return Predicted(source, None, error)
        except OutputError as error:
            if not concerns_one_file(error):
                raise
            if self.overlays:  # no overlay without its mask
                with suppress(OSError):
                    overlay_path(target).unlink(missing_ok=True)
            return Predicted(source, None, error)
        return Predicted(source, target)


def _in_order(results: Iterable[dict[int, Predicted]]) -> Iterator[Predicted]:
    """Results of groups by the places of their images → results in the order of the places."""
    waiting: dict[int, Predicted] = {}
    next_place = 0
    for found in results:
        waiting |= found
        while next_place in waiting:
            yield waiting.pop(next_place)
            next_place += 1


def overall_error(
    results: Sequence[Predicted], skipped: Sequence[Skipped] = (), kept: int = 0
) -> DenseSiamError | None:
    """The error that the command ends with: none, the only one, or that some (or all) images failed.

    `kept` counts masks of an earlier run.
    """
    errors = [result.error for result in results if result.error is not None]
    messages = [item.message for item in skipped] + [str(error) for error in errors]
    if not messages:
        return None
    total = len(results) + len(skipped) + kept
    if total == 1 and errors:
        return errors[0]
    if len(messages) == total:
        if not skipped and all(isinstance(error, OutputError) for error in errors):
            return OutputError(f"none of the {total} masks could be written, first: {messages[0]}")
        return InputError(f"none of the {total} images could be read, first: {messages[0]}")
    return PartialError(
        f"{len(messages)} of {total} images failed, the others are done; first: {messages[0]}"
    )
