"""`predict`: images → masks at their own size, under their own names.

Each core processes whole images, from the file to the mask; memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from densesiam_seg.errors import (
    DenseSiamError,
    ImageError,
    InputError,
    OutputError,
    PartialError,
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
from densesiam_seg.io.parallel import on_own_cores
from densesiam_seg.io.records import Records
from densesiam_seg.io.signals import StopRequest, stop_requests
from densesiam_seg.prediction.batching import Group, groups, in_order
from densesiam_seg.prediction.earlier import is_whole
from densesiam_seg.prediction.plan import Plan
from densesiam_seg.prediction.scoring import Scored, Scorer
from densesiam_seg.prediction.video import frame_mask, frame_source, frames
from densesiam_seg.prediction.writing import Picture, Writer

MAX_BATCH_SIZE = 1024
STOPPED = "stopped; finish with --resume"
LEFTOVER_SECONDS = 3600.0
"""Age from which on an unfinished file in a folder of masks is one that a killed process left."""
WAITING_FRAMES = 2
"""Frames per core that may wait for their turn; each is in memory."""
NOTED_FRAMES = 512
"""Frames whose files are noted at once (`io.outputs`)."""


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
    job = _Job(work, Scorer(segmenter, decoding, refinement, work.wanted.tile), closed)
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
    work = job.work
    stills = work.sources[: work.stills]
    scorer = job.scorer
    every = groups(scorer.segmenter, stills, batch_size, scorer.decoding, scorer.tile)
    with closing(on_own_cores(job.do, stop.until(every, STOPPED))) as found:
        yield from in_order(found)
    for place in range(len(stills), len(work.sources)):
        video = _Video(job, place)
        every_frame = stop.until(video.frames(), STOPPED)
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

    work: Plan
    scorer: Scorer
    closed: Mapping[Path, OutputError]

    def do(self, group: Group) -> dict[int, Predicted]:
        """The results of a group by the places of its images."""
        sources, targets = self.work.sources, self.work.targets
        results: dict[int, Predicted] = {}
        for place in group.places:
            closed = self.closed.get(targets[place].parent)
            if closed is not None:
                results[place] = Predicted(sources[place], None, closed)
        left = tuple(place for place in group.places if place not in results)
        for place, found in self.scorer.of_group(sources, replace(group, places=left)):
            results[place] = self._write(place, found)
        return results

    def _write(self, place: int, found: Scored | ImageError) -> Predicted:
        """The files of an image, if it could be read."""
        source = self.work.sources[place]
        if isinstance(found, ImageError):
            return Predicted(source, None, found)

        def picture() -> NDArray[np.uint8]:
            return load_image(source, self.scorer.decoding).permute(1, 2, 0).numpy()

        return self.write(self.work.files(place), source, picture, found)

    def write(
        self,
        files: Mapping[str, Path],
        source: str,
        picture: Picture,
        found: Scored,
    ) -> Predicted:
        """The files of an image or frame. Raises OutputError where others would fare no better."""
        of = self.scorer
        writer = Writer(of.segmenter, self.work.wanted, of.decoding, of.refinement)
        try:
            writer.write(files, source, picture, found.scores, found.size)
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
        work, limit = self.job.work, self.job.scorer.decoding.max_pixels
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
        pixels = torch.from_numpy(frame).movedim(-1, 0).contiguous()
        return job.write(files, source, lambda: frame, job.scorer.of_pixels(pixels))


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
