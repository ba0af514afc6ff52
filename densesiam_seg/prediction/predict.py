"""`predict`: images → masks at their own size, under their own names.

Each core processes whole images, from the file to the mask; memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import (
    DenseSiamError,
    ImageError,
    InputError,
    OutputError,
    PartialError,
    UsageError,
    counted,
)
from densesiam_seg.events import Notice, Predicted
from densesiam_seg.images.decode import load_image
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.manifest import Skipped
from densesiam_seg.inference.identity import facts_of
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import (
    JSON,
    concerns_one_file,
    make_folder,
    output_error,
    remove_leftovers,
    sync_folders,
)
from densesiam_seg.io.outputs import Noting
from densesiam_seg.io.parallel import on_own_cores
from densesiam_seg.io.records import Records
from densesiam_seg.io.signals import StopRequest, stop_requests
from densesiam_seg.packed.members import as_shown
from densesiam_seg.peers.record import Record, claim, require_unchanged
from densesiam_seg.prediction.batching import Group, groups, in_order
from densesiam_seg.prediction.earlier import Earlier
from densesiam_seg.prediction.plan import Plan
from densesiam_seg.prediction.scoring import Scored, Scorer
from densesiam_seg.prediction.video import Video
from densesiam_seg.prediction.writing import Picture, Writer

MAX_BATCH_SIZE = 1024
STOPPED = "stopped; finish with --resume"
STOPPED_SHARD = "stopped; run the shard again to finish it"
NOTED = 4096
"""Images whose files are noted at once (`io.outputs`)."""
LEFTOVER_SECONDS = 3600.0
"""Age from which on an unfinished file in a folder of masks is one that a killed process left."""
WAITING_FRAMES = 2
"""Frames per core that may wait for their turn; each is in memory."""


def predict_events(
    segmenter: Segmenter,
    work: Plan,
    *,
    decoding: Decoding | None = None,
    batch_size: int | None = None,
    refinement: Refinement = AS_TRAINED,
    tell: Callable[[Notice], object] | None = None,
) -> Iterator[Predicted]:
    """Write the planned files; one event per image, in the order of the plan, and then one per frame of each video.

    Images are read as `decoding` says (None: as those of the training were). `batch_size` images of one working size
    pass the network together (None: `batching.images_together`). A mask does not depend on the other images or the
    number of cores; another batch size may round its logits differently. Images that cannot be read, or whose own files
    cannot be written, are reported as events and listed in `failed.jsonl`. A video that breaks off is one of them,
    after its frames. Where the plan keeps files of an earlier run, the events of the images that they belong to come
    first; `tell` gets what is worth telling of the others.

    Raises UsageError, OutputError for a disk that takes no more, and StoppedError when a signal asks to stop: every
    mask on the disk is whole.
    """
    if batch_size is not None and not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise UsageError(f"--batch-size {batch_size}: must be 1 to {MAX_BATCH_SIZE}, or auto")
    work.wanted.require_ids(len(segmenter.clusters))
    decoding = decoding or segmenter.new_decoding()
    make_folder(work.folder)
    record = None
    if not work.single:
        own = facts_of(segmenter, decoding, refinement, batch_size, names=work.wanted.named)
        own |= work.wanted.facts()
        record = _record(work, own, tell or (lambda notice: None))
    if work.failures is not None:
        try:
            work.failures.unlink(missing_ok=True)
        except OSError as error:
            raise output_error(work.failures, error) from error
    with stop_requests() as stop:
        left = work
        if work.keeps:
            found = Earlier(work, record, tell or (lambda notice: None))
            yield from stop.until(found.kept(), _stopped(work))
            left = work.left(found.left)
        noting = Noting(work.note)
        folders, closed = _prepare_folders(left, noting)
        only_largest = not work.wanted.graded
        scorer = Scorer(
            segmenter, decoding, refinement, work.wanted.tile, only_largest=only_largest
        )
        maker = Maker(left, scorer, closed, record, noting)
        with closing(_results(maker, batch_size, stop)) as results:
            for result in results:
                if result.error is not None and work.failures is not None:
                    with Records(work.failures) as records:
                        records.append(failure_record(result.image, result.error))
                yield result
    sync_folders(folders - closed.keys())
    if work.keeps and record is not None:
        require_unchanged(work.folder, record)


def _record(work: Plan, own: Mapping[str, JSON], tell: Callable[[Notice], object]) -> Record:
    """What made the masks of the folder, for a job that makes some too. Raises UsageError and OutputError."""
    claimed = claim(
        work.folder,
        own,
        keeps=work.keeps,
        overwrite=work.overwrite,
        adopts=work.resume,
        images="" if work.shard is None else work.images,
    )
    if claimed.other_images:
        tell(
            Notice(
                "the list of images is not that of the shards before; run all shards again when no more images come",
                warning=True,
            )
        )
    if claimed.new and work.resume and not work.overwrite:
        tell(
            Notice(
                f"{work.folder}: nothing tells what made the masks there, if any: they are kept as they are"
            )
        )
    return claimed.record


def _stopped(work: Plan) -> str:
    return STOPPED if work.shard is None else STOPPED_SHARD


def _results(
    maker: Maker, batch_size: int | None, stop: StopRequest
) -> Generator[Predicted, None, None]:
    """What becomes of the images, then of each video's frames. Raises StoppedError between two of them."""
    work = maker.work
    stills, text = work.sources[: work.stills], _stopped(work)
    scorer = maker.scorer
    every = groups(scorer.segmenter, stills, batch_size, scorer.decoding, scorer.tile)
    with closing(on_own_cores(maker.do, stop.until(every, text))) as found:
        yield from in_order(found)
    for place in range(len(stills), len(work.sources)):
        video = Video(maker, place)
        every_frame = stop.until(video.frames(), text)
        with closing(
            on_own_cores(video.do, every_frame, max_waiting=WAITING_FRAMES)
        ) as found_frames:
            yield from found_frames
        if video.failure is not None:
            yield video.failure
        sync_folders({work.targets[place]} - maker.closed.keys())


def failure_record(image: str, error: ImageError | OutputError) -> dict[str, str]:
    """The record of an image that failed."""
    reason = error.reason if isinstance(error, ImageError) else "not-written"
    return {"path": as_shown(image), "reason": reason, "message": str(error)}


def _prepare_folders(work: Plan, noting: Noting) -> tuple[set[Path], dict[Path, OutputError]]:
    """Make the folders of the masks and note what will be written there.

    Returns the folders of images, and why some folders take nothing.
    """
    seen: set[Path] = set()
    closed: dict[Path, OutputError] = {}
    for start in range(0, len(work.places), NOTED):
        names: dict[Path, list[str]] = {}
        for place in range(start, min(start + NOTED, len(work.places))):
            if place < work.stills:
                files = list(work.files(place).values())
                names.setdefault(files[-1].parent, []).extend(path.name for path in files)
            else:
                names.setdefault(work.targets[place], [])
        for folder in sorted(names.keys() - closed.keys()):
            try:
                if folder not in seen:
                    make_folder(folder)
                    # Others may be writing there at this moment: folders of masks have no lock.
                    remove_leftovers(folder, seconds=LEFTOVER_SECONDS)
                if names[folder]:
                    seen.add(folder)
                    if work.noted:
                        noting.add(folder, names[folder])
            except OutputError as error:
                if folder == work.folder or not concerns_one_file(error):
                    raise
                closed[folder] = error
    return seen, closed


@dataclass(frozen=True)
class Maker:
    """Makes the files of each group of images, in several threads at once."""

    work: Plan
    scorer: Scorer
    closed: Mapping[Path, OutputError]
    """Folders that take nothing."""
    record: Record | None
    noting: Noting

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


def overall_error(
    results: Sequence[Predicted], skipped: Sequence[Skipped] = ()
) -> DenseSiamError | None:
    """The error that the command ends with: none, the only one, or that some (or all) images failed."""
    failed = [result for result in results if result.error is not None]
    return error_of(failed, len(results), skipped)


def error_of(
    failed: Sequence[Predicted], images: int, skipped: Sequence[Skipped] = (), part: str = ""
) -> DenseSiamError | None:
    """The same of so many images of which some have `failed`.

    Of a `part` of a job it is always that some did: the others may have fared better.
    """
    errors = [result.error for result in failed if result.error is not None]
    messages = [item.message for item in skipped] + [str(error) for error in errors]
    if not messages:
        return None
    total = images + len(skipped)
    if part:
        return PartialError(
            f"{len(messages)} of {counted(total, 'image')} of {part} failed; first: {messages[0]}"
        )
    if total == 1 and errors:
        return errors[0]
    if len(messages) == total:
        if not skipped and all(isinstance(error, OutputError) for error in errors):
            return OutputError(f"none of the {total} masks could be written, first: {messages[0]}")
        return InputError(f"none of the {total} images could be read, first: {messages[0]}")
    return PartialError(
        f"{len(messages)} of {total} images failed, the others are done; first: {messages[0]}"
    )
