"""An evaluation on the workers of a Ray cluster: each loads the model once and counts groups of samples."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from densesiam_seg.datasets.reader import Sample
from densesiam_seg.errors import DenseSiamError
from densesiam_seg.evaluation.counting import (
    BATCH,
    Counting,
    SampleTally,
    Tallying,
    groups_of,
    nothing,
)
from densesiam_seg.evaluation.evaluate import Benchmark, last_events, segmenter_job
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.events import Notice, Progress
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.on_ray.cluster import on_workers, parts_of, unseen_by
from densesiam_seg.on_ray.sent_model import SentModel
from densesiam_seg.peers.shard import Shard

SAMPLES = 32
"""About so many samples are given to a worker at once, and lost with it."""


@dataclass(frozen=True)
class Answer:
    """What a worker found in some samples."""

    tally: SampleTally
    failure: DenseSiamError | None
    """Of the first sample that has one; those behind it are not in the tally."""
    unseen: str = ""
    """One of their files that is not there on the worker's machine, if there is trouble with any."""
    host: str = ""


@dataclass(frozen=True)
class RayScoring:
    """The work that is sent to the workers."""

    model: SentModel
    task: Benchmark
    """Without its samples."""
    refinement: Refinement

    @classmethod
    def of(cls, model: SentModel, task: Benchmark, refinement: Refinement) -> RayScoring:
        """For a task whose samples are sent part by part."""
        return cls(model, replace(task, samples=replace(task.samples, items=())), refinement)

    def ready(self) -> Callable[[Sequence[Sample]], Answer]:
        """Load the model. Raises DenseSiamError."""
        counting, _ = segmenter_job(self.model.load(), self.task, self.refinement)
        return partial(answer, counting)


def answer(counting: Counting, samples: Sequence[Sample]) -> Answer:
    """Count some samples."""
    work = Tallying(counting, samples)
    with closing(work.run()) as steps:
        failure = work.failure(steps)
    trouble = failure is not None or work.tally.unreadable
    files = [str(path) for each in samples for path in (each.image, each.label)] if trouble else []
    unseen = next((path for path in files if not os.path.exists(path)), "")  # noqa: PTH110
    return Answer(work.tally, failure and failure[1], unseen, socket.gethostname())


def ray_events(
    address: str,
    segmenter: Segmenter,
    model: SentModel,
    task: Benchmark,
    refinement: Refinement = AS_TRAINED,
) -> Iterator[Notice | Progress | Evaluation]:
    """Score the samples of `task` on a cluster; the last event is the `Evaluation`, as one process gives it.

    Raises as `segmenter_events` and `on_workers` do, and WorkerError for workers that do not see the files.
    """
    counting, job = segmenter_job(segmenter, task, refinement)
    work = RayScoring.of(model, task, refinement)
    yield from (Notice(note, warning=True) for note in job.notes)
    parts = sample_parts(task.samples.items)
    tally = nothing(counting)
    failures: dict[int, DenseSiamError] = {}
    waiting = set(range(len(parts)))
    notices: list[Notice] = []
    found_by = on_workers(address, work, parts, device=model.device, tell=notices.append)
    with closing(found_by) as answers:
        for place, found in answers:
            yield from notices
            notices.clear()
            if found.unseen and os.path.exists(found.unseen):  # noqa: PTH110
                raise unseen_by(found.host, found.unseen)
            waiting.discard(place)
            tally += found.tally
            if found.failure is not None:
                failures[place] = found.failure
            if failures and min(failures) < min(waiting, default=len(parts)):
                raise failures[min(failures)]
            yield Progress("scoring", tally.images, len(task.samples))
    yield from last_events([job], [None], tally)


def sample_parts(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    """Whole groups of neighbours, as parts of about `SAMPLES`."""
    groups = groups_of(len(samples))
    count = min(parts_of(len(samples), SAMPLES), groups)
    places = [Shard(index, count).part(groups) for index in range(count)]
    return [samples[each.start * BATCH : each.stop * BATCH] for each in places]
