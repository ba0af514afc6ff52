"""One run of a study: a row with one seed, pre-trained, scored, and what that took.

Scores are percentages, times seconds.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from densesiam_seg.config import PretrainConfig, read_config
from densesiam_seg.errors import ModelError, NumericError, StoppedError
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.evaluation.probe import Probe, probe_events
from densesiam_seg.events import Notice, Progress, Started, StepRecord, Trained
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import discard, output_error, remove_leftovers
from densesiam_seg.io.records import Records, read_records
from densesiam_seg.io.run_directory import read_status
from densesiam_seg.io.signals import StopRequest
from densesiam_seg.studies.ablations import Row
from densesiam_seg.studies.plan import Plan
from densesiam_seg.training.train import pretraining_events

ROWS, COSTS = "rows.jsonl", "costs.jsonl"
BUDGET = (
    *("epochs", "image_size", "batch_size", "learning_rate"),
    *("backbone", "weights", "features"),
)
"""The settings in a run's result, beside its steps: how long and on what it trained."""


@dataclass(frozen=True)
class Cost:
    """What a part of the work took, in seconds; `processor` counts every thread."""

    wall: float = 0.0
    processor: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.processor + other.processor)

    def __str__(self) -> str:
        return f"{self.processor:.0f} s of processor time, {self.wall:.0f} s of wall time"


@dataclass(frozen=True)
class ProbeScore:
    """What is kept of one probe's `Evaluation`; `iou` by class, None for a class that does not occur."""

    mean_iou: float
    pixel_accuracy: float
    iou: Mapping[str, float | None]
    protocol: str
    readout: str
    clusters: int

    @classmethod
    def of(cls, evaluation: Evaluation | None) -> ProbeScore:
        """The score of a probe that was asked for."""
        assert evaluation is not None, "both probes were asked for"
        scores = evaluation.scores
        iou = dict(zip(scores.names, scores.iou, strict=True))
        made_by = (evaluation.protocol, evaluation.readout, evaluation.clusters)
        return cls(scores.mean_iou, scores.pixel_accuracy, iou, *made_by)


@dataclass(frozen=True)
class RunResult:
    """A row with one seed: both probes' scores, or why there are none."""

    row: str
    seed: int
    failure: str | None
    linear: ProbeScore | None
    kmeans: ProbeScore | None
    training: Cost
    probing: Cost
    budget: Mapping[str, Any]

    def __str__(self) -> str:
        if self.linear is None or self.kmeans is None:
            return f"failed: {self.failure}"
        return (
            f"linear probe {self.linear.mean_iou:.2f} mean IoU, {self.linear.pixel_accuracy:.2f} pixel accuracy; "
            f"k-means {self.kmeans.mean_iou:.2f} and {self.kmeans.pixel_accuracy:.2f}; "
            f"{(self.training + self.probing).wall:.0f} s"
        )


def read_results(folder: Path) -> list[RunResult]:
    """The finished runs of the study in `folder`, in the order in which they were. Raises ModelError."""
    try:
        return TypeAdapter(list[RunResult]).validate_python(read_records(folder / ROWS))
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ModelError(
            f"{folder / ROWS}: a line is not a row of a study ({wrong['msg']}: {wrong['loc'][1:]}); restore the file "
            "or start a new study"
        ) from error


@dataclass(frozen=True)
class Study:
    """A study under way."""

    folder: Path
    plan: Plan
    stop: StopRequest
    warned: set[str] = field(default_factory=set)
    """Warnings already shown: a file that one run skips is skipped by all of them."""

    def require_going_on(self) -> None:
        """Raises StoppedError where a signal has come."""
        if self.stop:
            raise self.stopped(self.stop.number)

    def stopped(self, signal_number: int) -> StoppedError:
        """The error that says how to go on."""
        plan, finished = self.plan, len(read_results(self.folder))
        return StoppedError(
            f"stopped after {finished} of {len(plan.runs())} runs; go on with densesiam-seg study {plan.study} "
            f"{plan.given} --root {plan.root} --resume --out {self.folder} and the same options",
            signal_number,
        )


@dataclass(frozen=True)
class RowRun:
    """A row with one seed."""

    study: Study
    row: Row
    seed: int

    @property
    def name(self) -> str:
        """A name that no other run of the study has."""
        return f"{self.row.slug}-seed-{self.seed}"

    @property
    def folder(self) -> Path:
        return self.study.folder / "runs" / self.name

    def cost(self, part: str) -> Cost:
        """What a part of the run has taken so far, earlier starts included."""
        spent = read_records(self.study.folder / COSTS)
        own = [each for each in spent if (each["run"], each["part"]) == (self.name, part)]
        return sum((Cost(each["wall"], each["processor"]) for each in own), Cost())

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Add what the block takes to `costs.jsonl`, also where it is stopped: the next start adds its own."""
        wall, processor = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = Cost(time.perf_counter() - wall, time.process_time() - processor)
            with Records(self.study.folder / COSTS) as records:
                records.append({"run": self.name, "part": part, **asdict(spent)})


def finish(run: RowRun) -> Generator[Notice | Progress, None, RunResult]:
    """Train the row and score it; returns its scores. A numeric failure is a result, not an error."""
    linear = kmeans = failure = None
    try:
        model = yield from _train(run)
        probe = yield from _probe(run, model)
        linear, kmeans = ProbeScore.of(probe.linear), ProbeScore.of(probe.kmeans)
    except NumericError as error:
        failure = str(error)
    except StoppedError as error:
        raise run.study.stopped(error.exit_code - 128) from error
    config = read_config(run.folder / "config.toml", PretrainConfig())
    steps = [record["step"] for record in read_records(run.folder / "metrics.jsonl")]
    budget = {"steps": max(steps, default=0), **{name: config.get(name) for name in BUDGET}}
    costs = (run.cost("training"), run.cost("probing"))
    return RunResult(run.row.name, run.seed, failure, linear, kmeans, *costs, budget)


def _train(run: RowRun) -> Generator[Notice | Progress, None, Path]:
    """Pre-train, or go on with what there is; returns the model's folder."""
    plan, name = run.study.plan, f"{run.row.name}, seed {run.seed}"
    options = {**plan.settings, **run.row.settings, "seed": run.seed}
    done = read_status(run.folder).get("status") == "done"
    if done or any(run.folder.glob("checkpoints/step-*")):
        options |= {"images": [], "resume": True}
        if not run.cost("training").wall:
            yield Notice(f"{name}: was killed; its training s counts from here", warning=True)
    else:
        _discard(run.folder)
        images = [plan.images.path(index) for index in range(len(plan.images))]
        options |= {"images": images, "preset": plan.preset}
    steps = 0
    with run.measured("training"):
        for event in pretraining_events(out=run.folder, **options):
            # A run handles the signals during its training; those before it are handled here.
            run.study.require_going_on()
            match event:
                case Progress():
                    yield _of_row(event, run)
                case Started():
                    steps = event.total_steps
                case StepRecord():
                    yield _of_row(Progress("training", event.step, steps), run)
                case Notice() if event.warning and event.text not in run.study.warned:
                    run.study.warned.add(event.text)
                    yield Notice(f"{name}: {event.text}", warning=True)
    assert isinstance(event, Trained), "training ends with its model or an error"
    return event.model


def _probe(run: RowRun, model: Path) -> Generator[Progress, None, Probe]:
    """Score the frozen network."""
    plan = run.study.plan
    machine = {name: plan.settings.get(name, "auto") for name in ("device", "precision")}
    segmenter = Segmenter.load(model, **machine)
    with run.measured("probing"):
        for event in probe_events(segmenter, plan.task, plan.train, seed=run.seed):
            run.study.require_going_on()
            if isinstance(event, Progress):
                yield _of_row(event, run)
    assert isinstance(event, Probe), "a probe ends with its scores or an error"
    return event


def _of_row(event: Progress, run: RowRun) -> Progress:
    return Progress(f"{event.what} ({run.row.name})", event.done, event.total)


def tidy(run: RowRun) -> None:
    """Delete what a finished run needs no longer."""
    remove_leftovers(run.folder)
    _discard(run.folder / "checkpoints")


def _discard(path: Path) -> None:
    """Delete a folder where there is one. Raises OutputError."""
    try:
        if path.exists():
            discard(path)
    except OSError as error:
        raise output_error(path, error) from error
