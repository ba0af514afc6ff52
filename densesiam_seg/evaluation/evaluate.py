"""Segmenter + labelled data → scores, under one of the field's three protocols.

Axes: N classes, K clusters, H W label size.

Scores are comparable only within a protocol, so every result states its own in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from densesiam_seg.datasets.declaration import Dataset, load_dataset
from densesiam_seg.datasets.reader import Samples, samples
from densesiam_seg.errors import ModelError, UsageError
from densesiam_seg.evaluation.counting import Counting, SampleTally, tally_events
from densesiam_seg.evaluation.job import Evaluation, Job
from densesiam_seg.evaluation.metrics import Matching
from densesiam_seg.evaluation.protocol import MasksOf, Protocol, masks_made_by, pick_protocol
from densesiam_seg.events import Notice, Progress
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.identity import digest_of_model
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.peers.group import ALONE, Group


@dataclass(frozen=True)
class Reading:
    """The ids of a mask: their number, the read-out that made them, and their classes if known."""

    clusters: int
    readout: str
    matching: Matching | None = None
    """None: the best matching for the whole set (`metrics.match`)."""
    left: tuple[int, ...] | None = None
    """The ids that occur where others are merged into them; None: all."""


@dataclass(frozen=True)
class Benchmark:
    """What models are scored on; checked before any of them is loaded."""

    dataset: Dataset
    samples: Samples
    protocol: Protocol
    image_size: int | None = None
    """None: the model's own."""
    allow_missing: bool = False
    """Count images that cannot be read as missing; else they are errors."""

    def side(self, segmenter: Segmenter) -> int:
        """The shorter side of the images as the network gets them."""
        return self.image_size or segmenter.card.image_size


def evaluate(
    dataset: str | Path,
    root: str | Path,
    model: str | Path | Segmenter,
    *,
    split: str | None = None,
    protocol: str | None = None,
    image_size: int | None = None,
    list_file: str | Path | None = None,
    allow_missing: bool = False,
    allow_outside: bool = False,
    refinement: Refinement = AS_TRAINED,
    device: str = "auto",
) -> Evaluation:
    """Score a model on a labelled dataset: a built-in name or a TOML file, and the folder `root` that holds it.

    `refinement` adds passes and an edge filter to the protocol; the result's protocol names them. `allow_outside` lets
    lists name files outside `root`.
    """
    task = benchmark(
        dataset,
        root,
        split,
        protocol=protocol,
        image_size=image_size,
        list_file=list_file,
        allow_missing=allow_missing,
        allow_outside=allow_outside,
    )
    segmenter = model if isinstance(model, Segmenter) else Segmenter.load(model, device=device)
    *_, result = segmenter_events(segmenter, task, refinement)
    assert isinstance(result, Evaluation)
    return result


def benchmark(
    dataset: str | Path,
    root: str | Path,
    split: str | None = None,
    *,
    protocol: str | None = None,
    image_size: int | None = None,
    list_file: str | Path | None = None,
    allow_missing: bool = False,
    allow_outside: bool = False,
) -> Benchmark:
    """A split of a labelled dataset under a protocol (None: the dataset's own). Raises UsageError or InputError."""
    declared = load_dataset(dataset)
    chosen = pick_protocol(declared.protocol if protocol is None else protocol)
    if image_size is not None and not 32 <= image_size <= 4096:
        raise UsageError(f"--image-size {image_size}: must be 32 to 4096")
    scored = samples(
        declared,
        root,
        split,
        list_file=list_file,
        allow_missing=allow_missing,
        allow_outside=allow_outside,
    )
    return Benchmark(declared, scored, chosen, image_size, allow_missing)


def segmenter_events(
    segmenter: Segmenter, task: Benchmark, refinement: Refinement = AS_TRAINED, group: Group = ALONE
) -> Iterator[Notice | Progress | Evaluation]:
    """Score a segmenter as it is read out; the last event is the `Evaluation`.

    The processes of a `group` share the work, and each has the same result. Raises ModelError where their models are
    not the same.
    """
    counting, job = segmenter_job(segmenter, task, refinement)
    if len(set(group.gathered((job.model, job.arithmetic)))) > 1:
        raise ModelError(
            "--model: the processes of this job read different models, or compute on unlike devices; "
            "give a folder that all of them share, and --device cpu if not all have a GPU"
        )
    return _events(task, counting, [job], [None], group)


def segmenter_job(
    segmenter: Segmenter, task: Benchmark, refinement: Refinement = AS_TRAINED
) -> tuple[Counting, Job]:
    """How a segmenter's masks are counted, and what the score will depend on."""
    how = refinement.settled(segmenter.card.refine)
    left = tuple(cluster.id for cluster in segmenter.left)
    reading = Reading(segmenter.card.clusters, segmenter.readout, left=left)
    masks_of, side = masks_made_by(segmenter, how), task.side(segmenter)
    counting = _counting(task, masks_of, [reading], side, segmenter.new_decoding())
    job = _job(task, reading, side, how.describe(), masks_of.zoom)
    precision = str(segmenter.precision).removeprefix("torch.")
    exact = ", exact" if segmenter.exact else ""
    where = f"{segmenter.device.type}, {precision}{exact}"
    return counting, replace(job, model=digest_of_model(segmenter), arithmetic=where)


def scoring_events(
    task: Benchmark,
    masks_of: MasksOf,
    readings: Sequence[Reading],
    side: int,
    on_top: str = "",
    *,
    decoding: Decoding | None = None,
) -> Iterator[Notice | Progress | Evaluation]:
    """Score several masks of each image in one pass; the last events are an `Evaluation` for each of `readings`.

    Before them come warnings of data that may not be what they seem.

    Labels are resized to the shorter side `side`, images, read as `decoding` says, to `masks_of.zoom` times that.
    `on_top` describes what `masks_of` does beyond the protocol.

    `masks_of` is called from several threads at once, with `BATCH` images where these are of one size (the last one
    repeated where there are fewer), else with one. Raises ImageError for an image that cannot be read (counted as
    missing with `allow_missing`) and InputError for a label that does not fit its image or its dataset, always the
    first such error in the order of the samples.
    """
    counting = _counting(task, masks_of, readings, side, decoding or Decoding())
    jobs = [_job(task, reading, side, on_top, masks_of.zoom) for reading in readings]
    return _events(task, counting, jobs, [reading.matching for reading in readings], ALONE)


def _counting(
    task: Benchmark,
    masks_of: MasksOf,
    readings: Sequence[Reading],
    side: int,
    decoding: Decoding,
) -> Counting:
    clusters = tuple(reading.clusters for reading in readings)
    return Counting(
        task.dataset,
        task.protocol,
        side,
        masks_of,
        clusters,
        decoding,
        task.allow_missing,
    )


def _job(task: Benchmark, reading: Reading, side: int, on_top: str, zoom: int) -> Job:
    return Job(
        dataset=task.dataset.title,
        split=task.samples.split,
        protocol=task.protocol.describe(side, zoom) + on_top,
        samples=len(task.samples),
        expected=task.samples.expected,
        missing=task.samples.missing,
        digest=task.samples.digest,
        clusters=reading.clusters,
        readout=reading.readout,
        left=reading.left,
        names=task.dataset.names,
        kinds=task.dataset.kinds,
        notes=task.samples.notes,
    )


def _events(
    task: Benchmark,
    counting: Counting,
    jobs: Sequence[Job],
    matchings: Sequence[Matching | None],
    group: Group,
) -> Iterator[Notice | Progress | Evaluation]:
    yield from (Notice(note, warning=True) for note in task.samples.notes)
    tally = yield from tally_events(counting, task.samples.items, group)
    yield from last_events(jobs, matchings, tally)


def last_events(
    jobs: Sequence[Job], matchings: Sequence[Matching | None], tally: SampleTally
) -> Iterator[Notice | Evaluation]:
    """What a tally comes to: warnings, then an `Evaluation` for each job; a matching of None is the best."""
    notices = tally.notices()
    yield from notices
    notes = [notice.text for notice in notices]
    for job, matching, counts in zip(jobs, matchings, tally.counts, strict=True):
        yield job.result(counts, tally.unreadable, notes, matching)


def known_classes(classes: int) -> Matching:
    """The matching of masks whose ids are class ids already."""
    return Matching(tuple(range(classes)), "identity")
