"""`predict`: images → masks at their own size, under their own names.

Each core processes whole images, from the file to the mask; memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
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
from densesiam_seg.io.files import (
    concerns_one_file,
    make_folder,
    output_error,
    remove_leftovers,
    sync_folders,
)
from densesiam_seg.io.outputs import note_outputs
from densesiam_seg.io.parallel import device_lock, on_own_cores
from densesiam_seg.io.records import Records
from densesiam_seg.io.signals import StopRequest, stop_requests
from densesiam_seg.prediction.batching import Group, groups
from densesiam_seg.prediction.earlier import is_whole
from densesiam_seg.prediction.plan import Plan
from densesiam_seg.prediction.tiles import load_large, shown_size, tiled_scores
from densesiam_seg.prediction.video import frame_mask, frame_source, frames
from densesiam_seg.prediction.writing import Picture, Writer

MAX_BATCH_SIZE = 1024
LEFTOVER_SECONDS = 3600.0
"""Age from which on an unfinished file in a folder of masks is one that a killed process left."""
LARGE = 2**20
"""Pixels from which on images in tiles pass the network one after the other."""
WAITING_FRAMES = 2
"""Frames per core that may wait for their turn; each is in memory."""

NOTED_FRAMES = 512
"""Frames whose files are noted at once (`io.outputs`)."""

Item = TypeVar("Item")


def predict_events(
    segmenter: Segmenter,
    work: Plan,
    *,
    decoding: Decoding | None = None,
    batch_size: int | None = None,
    refinement: Refinement = AS_TRAINED,
) -> Iterator[Predicted]:
    """Write the planned files; one event per image, in the order of the plan, and then one per frame of each video.

    Images are read as `decoding` says (None: as those of the training were). `batch_size` images of one working size
    pass the network together (None: `batching.images_together`). A mask does not depend on the other images or the
    number of cores; another batch size may round its logits differently. Images that cannot be read, or whose own files
    cannot be written, are reported as events and listed in `failed.jsonl`. A video that breaks off is one of them,
    after its frames.

    Raises UsageError, OutputError for a disk that takes no more, and StoppedError when a signal asks to stop: every
    mask on the disk is whole.
    """
    if batch_size is not None and not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise UsageError(f"--batch-size {batch_size}: must be 1 to {MAX_BATCH_SIZE}, or auto")
    work.wanted.require_ids(len(segmenter.clusters))
    decoding = decoding or segmenter.new_decoding()
    make_folder(work.folder)
    closed = _prepare_folders(work)
    if work.failures is not None:
        try:
            work.failures.unlink(missing_ok=True)
        except OSError as error:
            raise output_error(work.failures, error) from error
    job = _Job(segmenter, work, decoding, refinement, device_lock(segmenter.device), closed)
    with stop_requests() as stop, closing(_results(job, batch_size, stop)) as found:
        for result in found:
            if result.error is not None and work.failures is not None:
                with Records(work.failures) as records:
                    records.append(_failure(result.image, result.error))
            yield result
    sync_folders({target.parent for target in work.targets[: work.stills]} - closed.keys())


def _results(
    job: _Job, batch_size: int | None, stop: StopRequest
) -> Generator[Predicted, None, None]:
    """What becomes of the images, then of each video's frames. Raises StoppedError between two of them."""

    def until_stopped(items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if stop:
                raise StoppedError("stopped; finish with --resume", stop.number)
            yield item

    work = job.work
    stills = work.sources[: work.stills]
    tile = work.wanted.tile
    every = groups(job.segmenter, stills, batch_size, job.decoding, tile)
    with closing(on_own_cores(job.do, until_stopped(every))) as found:
        yield from _in_order(found)
    for place in range(len(stills), len(work.sources)):
        video = _Video(job, place)
        every_frame = until_stopped(video.frames())
        with closing(
            on_own_cores(video.do, every_frame, max_waiting=WAITING_FRAMES)
        ) as found_frames:
            yield from found_frames
        if video.failure is not None:
            yield video.failure
        sync_folders({work.targets[place]} - job.closed.keys())


def _failure(image: str, error: ImageError | OutputError) -> dict[str, str]:
    """The record of an image that failed."""
    reason = error.reason if isinstance(error, ImageError) else "not-written"
    return {"path": image, "reason": reason, "message": str(error)}


def _prepare_folders(work: Plan) -> dict[Path, OutputError]:
    """Make the folders of the masks and note what will be written there; returns why some of them take nothing."""
    names: dict[Path, list[str]] = {}
    for place, target in enumerate(work.targets):
        if place < work.stills:
            written = [path.name for path in work.files(place).values()]
            names.setdefault(target.parent, []).extend(written)
        else:
            names.setdefault(target, [])
    closed: dict[Path, OutputError] = {}
    for folder in sorted(names):
        try:
            make_folder(folder)
            # Others may be writing there at this moment: folders of masks have no lock.
            remove_leftovers(folder, seconds=LEFTOVER_SECONDS)
            if work.noted and names[folder]:
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
    decoding: Decoding
    refinement: Refinement
    lock: AbstractContextManager[object]
    closed: Mapping[Path, OutputError]
    large: AbstractContextManager[object] = field(default_factory=Lock)

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
                if group.tiled is not None:
                    results[place] = self._do_large(place, group.tiled)
                    continue
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

    def _do_large(self, place: int, size: tuple[int, int]) -> Predicted:
        """An image (H, W) in tiles. Raises ImageError where it cannot be read."""
        source = self.work.sources[place]
        shown = shown_size(self.segmenter, size, self.work.wanted.tile)
        assert shown is not None
        pixels = load_large(source, self.segmenter, shown, self.decoding)
        scores = self.tiled(pixels, shown)
        del pixels
        return self._write(place, scores, size)

    def tiled(self, pixels: Tensor, shown: tuple[int, int]) -> Tensor:
        """Pixels (3, h, w) → scores (K, h, w) of all tiles."""
        # One very large image at a time: its windows take more memory than other images together.
        turn = self.large if shown[0] * shown[1] > LARGE else nullcontext()
        with turn:
            found = tiled_scores(self.segmenter, pixels, shown, self.refinement, lock=self.lock)
        return found.cpu()

    def _write(self, place: int, scores: Tensor, size: tuple[int, int]) -> Predicted:
        """Scores (K, h, w) → the files of an image of that size (H, W)."""
        source = self.work.sources[place]

        def picture() -> NDArray[np.uint8]:
            return load_image(source, self.decoding).permute(1, 2, 0).numpy()

        return self.write(self.work.files(place), source, picture, scores, size)

    def write(
        self,
        files: Mapping[str, Path],
        source: str,
        picture: Picture,
        scores: Tensor,
        size: tuple[int, int],
    ) -> Predicted:
        """The files of an image or frame. Raises OutputError where others would fare no better."""
        writer = Writer(self.segmenter, self.work.wanted, self.decoding, self.refinement)
        try:
            writer.write(files, source, picture, scores, size)
        except ImageError as error:
            return Predicted(source, None, error)
        except OutputError as error:
            if not concerns_one_file(error):
                raise
            return Predicted(source, None, error)
        return Predicted(source, list(files.values())[-1], files=dict(files))


@dataclass
class _Video:
    """The frames of one video, read one after the other by the caller's thread and done in several."""

    job: _Job
    place: int
    failure: Predicted | None = None
    """Why it broke off, once its frames have been read."""

    @property
    def source(self) -> str:
        return self.job.work.sources[self.place]

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Frames with their numbers."""
        closed = self.job.closed.get(self.job.work.targets[self.place])
        if closed is not None:
            self.failure = Predicted(self.source, None, closed)
            return
        work, limit = self.job.work, self.job.decoding.max_pixels
        try:
            for count, item in enumerate(frames(self.source, work.wanted.every, limit)):
                if work.noted and count % NOTED_FRAMES == 0:
                    self._note(item[0])
                yield item
        except ImageError as error:
            self.failure = Predicted(self.source, None, error)

    def _note(self, first: int) -> None:
        """Note the files of the frames to come, as nobody knows how many there are. Raises OutputError."""
        work = self.job.work
        numbers = range(first, first + NOTED_FRAMES * work.wanted.every, work.wanted.every)
        files = (path for number in numbers for path in self._files(number).values())
        note_outputs(work.targets[self.place], (path.name for path in files))

    def _files(self, number: int) -> dict[str, Path]:
        """Where the files of a frame lie, by what they are."""
        wanted = self.job.work.wanted
        folder = self.job.work.targets[self.place]
        return wanted.files(folder / f"{frame_mask(number)}{wanted.suffix}")

    def do(self, item: tuple[int, NDArray[np.uint8]]) -> Predicted:
        """One frame → its files."""
        number, frame = item
        job, work = self.job, self.job.work
        source = frame_source(self.source, number)
        files = self._files(number)
        if work.resume and all(path.is_file() and is_whole(path) for path in files.values()):
            return Predicted(source, list(files.values())[-1], files=files, kept=True)
        size = (frame.shape[0], frame.shape[1])
        pixels = torch.from_numpy(frame).movedim(-1, 0).contiguous()
        shown = shown_size(job.segmenter, size, work.wanted.tile)
        if shown is not None:
            scores = job.tiled(pixels, shown)
        else:
            image, _ = job.segmenter.read(pixels)
            with job.lock:
                scores = job.segmenter.scores(image, job.refinement)[0].cpu()
        return job.write(files, source, lambda: frame, scores, size)


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
