"""`predict`: images → masks at their own size, under their own names.

Each core processes whole images, from the file to the mask; memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from pathlib import Path

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
from densesiam_seg.images.manifest import Skipped
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.upsampling import upsample_argmax
from densesiam_seg.io.files import (
    concerns_one_file,
    make_folder,
    output_error,
    remove_leftovers,
    replace_file,
    sync_folders,
)
from densesiam_seg.io.outputs import note_outputs
from densesiam_seg.io.parallel import device_lock, on_own_cores
from densesiam_seg.io.records import Records
from densesiam_seg.io.signals import stop_requests
from densesiam_seg.pictures.masks import encode_jpeg, overlay, write_mask
from densesiam_seg.prediction.batching import Group, groups
from densesiam_seg.prediction.names import overlay_path
from densesiam_seg.prediction.plan import Plan

MAX_BATCH_SIZE = 1024
LEFTOVER_SECONDS = 3600.0
"""Age from which on an unfinished file in a folder of masks is one that a killed process left."""


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
        mask = upsample_argmax(logits, *size).numpy()
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
