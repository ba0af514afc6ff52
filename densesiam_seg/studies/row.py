"""One run of a study: a row with one seed, pre-trained, scored, and what that took."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densesiam_seg.errors import NumericError, StoppedError
from densesiam_seg.evaluation.probe import Probe, probe_events
from densesiam_seg.events import Notice, Progress, Started, StepRecord, Trained
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import discard, output_error, remove_leftovers
from densesiam_seg.io.records import Records, read_records
from densesiam_seg.io.run_directory import read_status
from densesiam_seg.io.signals import StopRequest
from densesiam_seg.studies.ablations import Row
from densesiam_seg.studies.plan import Plan
from densesiam_seg.studies.scoreboard import Cost, ProbeScore, RunResult
from densesiam_seg.training.train import pretraining_events

ROWS = "rows.jsonl"
COSTS = "costs.jsonl"
BUDGET = ("epochs", "image_size", "batch_size", "learning_rate", "backbone", "features")


@dataclass(frozen=True)
class Study:
    """A study under way."""

    folder: Path
    plan: Plan
    stop: StopRequest
    told: set[str] = field(default_factory=set)
    """Warnings that were shown: a file that one run skips is skipped by all of them."""

    def results(self) -> list[RunResult]:
        """The runs that are finished, in the order in which they were."""
        return [RunResult.from_dict(record) for record in read_records(self.folder / ROWS)]

    def require_going_on(self) -> None:
        """Raises StoppedError where a signal has come."""
        if self.stop:
            raise self.stopped(self.stop.number)

    def stopped(self, signal_number: int) -> StoppedError:
        """The error that says how to go on."""
        plan = self.plan
        return StoppedError(
            f"stopped after {len(self.results())} of {len(plan.runs())} runs; go on with densesiam-seg study "
            f"{plan.study} {plan.given} --root {plan.root} --resume --out {self.folder} and the same options",
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
        spent = [
            Cost(record["wall"], record["processor"])
            for record in read_records(self.study.folder / COSTS)
            if (record["run"], record["part"]) == (self.name, part)
        ]
        return sum(spent, Cost())

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Add what the block takes to `costs.jsonl`, also where it is stopped: the next start adds its own."""
        wall, processor = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            with Records(self.study.folder / COSTS) as records:
                records.append(
                    {
                        "run": self.name,
                        "part": part,
                        "wall": time.perf_counter() - wall,
                        "processor": time.process_time() - processor,
                    }
                )


def finish(run: RowRun) -> Generator[Notice | Progress, None, RunResult]:
    """Train the row and score it; returns its scores. That its numbers fail is a result, and no error."""
    linear = kmeans = failure = None
    try:
        model = yield from _train(run)
        probe = yield from _probe(run, model)
        linear, kmeans = ProbeScore.of(probe.linear), ProbeScore.of(probe.kmeans)
    except NumericError as error:
        failure = str(error)
    except StoppedError as error:
        raise run.study.stopped(error.exit_code - 128) from error
    return RunResult(
        run.row.name,
        run.seed,
        failure,
        linear,
        kmeans,
        run.cost("training"),
        run.cost("probing"),
        _budget(run.folder),
    )


def _train(run: RowRun) -> Generator[Notice | Progress, None, Path]:
    """Pre-train, or go on with what there is; returns the model's folder."""
    how = _start(run)
    if "resume" in how and not run.cost("training").wall:
        text = f"{run.row.name}, seed {run.seed}: was killed; its training s counts from here"
        yield Notice(text, warning=True)
    trained: Trained | None = None
    steps = 0
    with run.measured("training"):
        for event in pretraining_events(out=run.folder, **how):
            # A run notes the signals that come while it trains; those that came before are ours.
            run.study.require_going_on()
            match event:
                case Progress():
                    yield Progress(f"{event.what} ({run.row.name})", event.done, event.total)
                case Started():
                    steps = event.total_steps
                case StepRecord():
                    yield Progress(f"training ({run.row.name})", event.step, steps)
                case Notice() if event.warning and event.text not in run.study.told:
                    run.study.told.add(event.text)
                    yield Notice(f"{run.row.name}, seed {run.seed}: {event.text}", warning=True)
                case Trained():
                    trained = event
    assert trained is not None, "training ends with its model or an error"
    return trained.model


def _start(run: RowRun) -> dict[str, Any]:
    """The options of pre-training: to go on where there is something to go on with, else to begin."""
    plan = run.study.plan
    settings = plan.run_settings(run.row, run.seed)
    done = read_status(run.folder).get("status") == "done"
    if done or any(run.folder.glob("checkpoints/step-*")):
        return {"images": [], "resume": True, **settings}
    if run.folder.exists():
        _discard(run.folder)
    images = [plan.images.path(index) for index in range(len(plan.images))]
    return {"images": images, "preset": plan.preset, **settings}


def _probe(run: RowRun, model: Path) -> Generator[Progress, None, Probe]:
    """Score the frozen network."""
    plan = run.study.plan
    machine = {name: plan.settings.get(name, "auto") for name in ("device", "precision")}
    segmenter = Segmenter.load(model, **machine)
    side = segmenter.card.image_size
    data = (plan.dataset, plan.train, plan.scored)
    with run.measured("probing"):
        for event in probe_events(
            segmenter, *data, protocol=plan.protocol, side=side, seed=run.seed
        ):
            run.study.require_going_on()
            match event:
                case Progress():
                    yield Progress(f"{event.what} ({run.row.name})", event.done, event.total)
                case Probe():
                    return event
    raise AssertionError("a probe ends with its scores or an error")


def _budget(folder: Path) -> dict[str, Any]:
    """How long and on what a run trained, by its own files; empty where they are absent."""
    with suppress(OSError, ValueError):
        config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        steps = [record.get("step", 0) for record in read_records(folder / "metrics.jsonl")]
        return {"steps": max(steps, default=0), **{name: config.get(name) for name in BUDGET}}
    return {}


def tidy(run: RowRun) -> None:
    """Delete what a finished run needs no longer."""
    remove_leftovers(run.folder)
    if (run.folder / "checkpoints").exists():
        _discard(run.folder / "checkpoints")


def _discard(path: Path) -> None:
    try:
        discard(path)
    except OSError as error:
        raise output_error(path, error) from error
