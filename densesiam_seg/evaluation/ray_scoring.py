"""An evaluation on the workers of a Ray cluster: each loads the model once and counts groups of samples."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from densesiam_seg.datasets.reader import Sample
from densesiam_seg.errors import DenseSiamError, ModelError, WorkerError
from densesiam_seg.evaluation.counting import (
    BATCH,
    Counting,
    Tally,
    Tallying,
    groups_of,
    nothing,
)
from densesiam_seg.evaluation.evaluate import Benchmark, last_events, segmenter_job
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.events import Notice, Progress
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import ReadOut, Segmenter
from densesiam_seg.io.devices import pick_device
from densesiam_seg.peers.ray_cluster import on_workers, parts_of
from densesiam_seg.peers.shard import Shard

SAMPLES = 32
"""About so many samples are given to a worker at once, and lost with it."""


@dataclass(frozen=True)
class Answer:
    """What a worker found in some samples."""

    tally: Tally
    failure: DenseSiamError | None
    """Of the first sample that has one; those behind it are not in the tally."""
    unseen: str = ""
    """One of their files that is not there on the worker's machine, if there is trouble with any."""
    host: str = ""


@dataclass(frozen=True)
class RayScoring:
    """The work that is sent to the workers."""

    model: Path
    read_out: ReadOut
    digest: str
    task: Benchmark
    """Without its samples."""
    refinement: Refinement
    device: str
    arithmetic: tuple[str, str]
    """Kind of device and precision of the one that asks, which workers of that kind use too."""

    @classmethod
    def of(
        cls, segmenter: Segmenter, model: Path, task: Benchmark, refinement: Refinement, device: str
    ) -> RayScoring:
        """For a segmenter that was loaded from `model`."""
        precision = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
        return cls(
            model.resolve(),
            segmenter.fitted,
            segmenter.digest(),
            replace(task, samples=replace(task.samples, items=())),
            refinement,
            device.partition(":")[0],  # a worker sees one GPU
            (segmenter.device.type, precision[str(segmenter.precision).removeprefix("torch.")]),
        )

    def ready(self) -> Callable[[Sequence[Sample]], Answer]:
        """Load the model. Raises DenseSiamError."""
        kind, precision = self.arithmetic
        alike = pick_device(self.device).type == kind
        plain = Segmenter.load(
            self.model, device=self.device, precision=precision if alike else "auto"
        )
        segmenter = plain.fitted_as(self.read_out)
        if segmenter.digest() != self.digest:
            raise ModelError(f"{self.model}: is another model here")
        counting, _ = segmenter_job(segmenter, self.task, self.refinement)
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
    address: str, work: RayScoring, segmenter: Segmenter, task: Benchmark
) -> Iterator[Notice | Progress | Evaluation]:
    """Score the samples of `task` on a cluster; the last event is the `Evaluation`, as one process gives it.

    Raises as `segmenter_events` and `on_workers` do, and WorkerError for workers that do not see the files.
    """
    counting, job = segmenter_job(segmenter, task, work.refinement)
    yield from (Notice(note, warning=True) for note in job.notes)
    parts = sample_parts(task.samples.items)
    tally = nothing(counting)
    failures: dict[int, DenseSiamError] = {}
    waiting = set(range(len(parts)))
    with closing(on_workers(address, work, parts, device=work.device)) as answers:
        for place, found in answers:
            if found.unseen and os.path.exists(found.unseen):  # noqa: PTH110
                raise WorkerError(
                    f"--ray: the worker on {found.host} sees no {found.unseen}; "
                    "every machine of the cluster must see the images under the same names (a shared disk)"
                )
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
