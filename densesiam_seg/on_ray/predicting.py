"""A prediction on the workers of a Ray cluster: the very shards of `predict --shard`, dealt out by Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from densesiam_seg.config import RunConfig
from densesiam_seg.errors import ImageError, OutputError, WorkerError
from densesiam_seg.events import Notice, Predicted
from densesiam_seg.images.decoding import Noted
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import make_folder, output_error, temporary_name
from densesiam_seg.io.records import Records
from densesiam_seg.on_ray.cluster import on_workers, parts_of, unseen_by
from densesiam_seg.on_ray.sent_model import SentModel
from densesiam_seg.peers.shard import Shard
from densesiam_seg.prediction.plan import Plan
from densesiam_seg.prediction.predict import failure_record, predict_events

IMAGES = 16
"""About so many images are given to a worker at once, and done again where it is lost."""


@dataclass(frozen=True)
class DoneShard:
    """What became of a shard."""

    results: list[Predicted]
    notices: list[Notice]
    noted: Noted
    unseen: str
    """An image that is not there on the worker's machine."""
    host: str


@dataclass(frozen=True)
class RayPrediction:
    """The work that is sent to the workers."""

    model: SentModel
    work: Plan
    settings: RunConfig
    refinement: Refinement
    batch_size: int | None
    sign: Path
    """A file that shows whether a worker writes to the same disk."""

    def ready(self) -> Callable[[Shard], DoneShard]:
        """Load the model. Raises DenseSiamError."""
        if not self.sign.exists():
            raise WorkerError(f"it sees another folder {self.work.folder}")
        segmenter = self.model.load()
        return lambda shard: self.done(segmenter, shard)

    def done(self, segmenter: Segmenter, shard: Shard) -> DoneShard:
        """Do a shard; what is there already is left as it is."""
        notices: list[Notice] = []
        decoding = segmenter.new_decoding(self.settings)
        events = predict_events(
            segmenter,
            self.work.part(shard),
            decoding=decoding,
            batch_size=self.batch_size,
            refinement=self.refinement,
            tell=notices.append,
        )
        results = list(events)
        failed = [each.image for each in results if isinstance(each.error, ImageError)]
        unseen = next((image for image in failed if not os.path.lexists(image)), "")
        return DoneShard(results, notices, decoding.notes.noted(), unseen, socket.gethostname())


@dataclass
class RayJob:
    """A prediction on a cluster, and what was noticed on the way."""

    address: str
    segmenter: Segmenter
    model: SentModel
    work: Plan
    """Of the whole job."""
    settings: RunConfig
    refinement: Refinement = AS_TRAINED
    batch_size: int | None = None
    tell: Callable[[Notice], object] = lambda notice: None
    noted: Noted = field(default_factory=Noted)

    def lines(self) -> list[str]:
        """What was noticed while images were decoded."""
        return self.noted.lines()

    def events(self) -> Iterator[Predicted]:
        """What becomes of the images, shard by shard as they are done; failures are listed in `failed.jsonl`.

        Raises as `predict_events` and `on_workers` do, and WorkerError for workers that do not see the files.
        """
        folder = make_folder(self.work.folder.absolute())
        sign = temporary_name(folder / "sign")
        try:
            sign.touch()
        except OSError as error:
            raise output_error(folder, error) from error
        try:
            yield from self._events(replace(self.work, folder=folder), sign)
        finally:
            with suppress(OSError):
                sign.unlink()

    def _events(self, work: Plan, sign: Path) -> Iterator[Predicted]:
        count = parts_of(len(work.order), IMAGES)
        shards = [Shard(index, count) for index in range(count)]
        sent = RayPrediction(
            self.model, work, self.settings, self.refinement, self.batch_size, sign
        )
        told: set[Notice] = set()
        failed: dict[int, list[Predicted]] = {}
        device = self.model.device
        found_by = on_workers(self.address, sent, shards, device=device, tell=self.tell)
        with closing(found_by) as answers:
            for place, found in answers:
                if found.unseen and os.path.lexists(found.unseen):
                    raise unseen_by(found.host, found.unseen)
                self.noted += found.noted
                for notice in found.notices:
                    if notice not in told:
                        self.tell(notice)
                    told.add(notice)
                failed[place] = [each for each in found.results if each.error is not None]
                yield from found.results
        _list_failures(replace(work, shard=None), shards, failed)


def _list_failures(work: Plan, shards: list[Shard], failed: dict[int, list[Predicted]]) -> None:
    """One list of all failures, in the order of the images, in place of the lists of the shards. Raises OutputError."""
    for shard in shards:
        own = work.part(shard).failures
        if own is not None:
            own.unlink(missing_ok=True)
    if work.failures is None:
        return
    try:
        work.failures.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(work.failures, error) from error
    for place in sorted(failed):
        for each in failed[place]:
            assert isinstance(each.error, ImageError | OutputError)
            with Records(work.failures) as records:
                records.append(failure_record(each.image, each.error))
