"""`study`: the rows of an ablation, each from the same seeds and with the same budget → one table of probe scores.

Every run of a row is a pre-training run of its own; its frozen network is scored by a linear probe and by k-means.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from densesiam_seg.config import PretrainConfig, read_config
from densesiam_seg.errors import (
    DenseSiamError,
    NumericError,
    OutputError,
    PartialError,
    StoppedError,
)
from densesiam_seg.evaluation.probe import Probe, probe_events
from densesiam_seg.events import Notice, Progress, Started, StepRecord, Trained
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import (
    discard,
    output_error,
    remove_leftovers,
    replace_json,
    replace_text,
    replacing,
)
from densesiam_seg.io.lock import run_lock
from densesiam_seg.io.records import Records, read_records
from densesiam_seg.io.run_directory import Status, new_run_folder, read_status, write_status
from densesiam_seg.io.signals import StopRequest, stop_requests
from densesiam_seg.studies.ablations import Row
from densesiam_seg.studies.plan import (
    STUDY,
    Plan,
    checked_labels,
    plan_study,
    require_same,
    write_plan,
)
from densesiam_seg.studies.tables import (
    Cost,
    ProbeScore,
    RunResult,
    Table,
    score_chart,
    score_table,
    standing_notes,
)
from densesiam_seg.training.train import pretraining_events

ROWS, COSTS = "rows.jsonl", "costs.jsonl"
NAMES = frozenset({STUDY, ROWS, COSTS, "runs", "table.md", "table.json", "plot.png", "run.json"})
"""What a study writes into its folder."""
BUDGET = ("epochs", "image_size", "batch_size", "learning_rate", "backbone", "features")


@dataclass(frozen=True)
class Studied:
    """The end: where everything lies, the table, and every run."""

    folder: Path
    table: Table
    plot: Path
    results: tuple[RunResult, ...]

    def error(self) -> PartialError | None:
        """The error that a command ends with where runs failed."""
        failed = [result for result in self.results if result.failure is not None]
        if not failed:
            return None
        return PartialError(
            f"{self.folder}: {len(failed)} of {len(self.results)} runs failed, first {failed[0].row}, seed "
            f"{failed[0].seed} ({failed[0].failure}); the table has the others"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        results = [asdict(result) for result in self.results]
        return {"folder": str(self.folder), **self.table.to_dict(), "results": results}


StudyEvent = Notice | Progress | Studied


def study_events(
    study: str,
    dataset: str | Path,
    root: str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> Iterator[StudyEvent]:
    """Run a study in `out` (default `runs/study/<timestamp>`); the last event is `Studied`.

    The other options are those of `plan_study`. With `resume` a study goes on at the missing rows, with the same
    options and data. Raises a `DenseSiamError`; a run whose numbers fail is recorded and the others go on, see
    `Studied.error`.
    """
    plan = plan_study(study, dataset, root, **options)
    yield from checked_labels(plan)
    folder = new_run_folder(
        "study", Path(out) if out else None, overwrite=overwrite, resume=resume, names=NAMES
    )
    with run_lock(folder), stop_requests() as stop:
        remove_leftovers(folder)
        if resume:
            require_same(folder, plan)
        try:
            write_status(folder, "running")
            if not resume:
                write_plan(folder, plan)
            yield from _study(Study(folder, plan, stop))
        except BaseException as error:
            status: Status = "stopped" if isinstance(error, StoppedError) else "failed"
            code = error.exit_code if isinstance(error, DenseSiamError) else 1
            # On a full disk the status cannot be written either; the first error is the one to report.
            with suppress(OutputError):
                reason = str(error) or type(error).__name__
                write_status(folder, status, reason=reason, exit_code=code)
            raise


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


def _study(study: Study) -> Iterator[StudyEvent]:
    """Every run that is missing, and the table after each of them."""
    plan = study.plan
    runs = [RowRun(study, row, seed) for row, seed in plan.runs()]
    yield Notice(
        f"{plan.study} study: {len(plan.rows)} rows x {len(plan.seeds)} seeds = {len(runs)} runs, into {study.folder}"
    )
    for item in plan.images.skipped:
        yield Notice(f"skipped ({item.reason}): {item.message}", warning=True)
    finished = {(result.row, result.seed) for result in study.results()}
    if finished:
        yield Notice(f"{len(finished)} of {len(runs)} runs were finished before")
    for number, run in enumerate(runs, 1):
        if (run.row.name, run.seed) not in finished:
            study.require_going_on()
            place = f"run {number} of {len(runs)}"
            yield Notice(f"{place}: {run.row.name}, seed {run.seed}")
            result = yield from finish(run)
            with Records(study.folder / ROWS) as records:
                records.append(asdict(result))
            _publish(study)
            yield Notice(f"{place}: {result}")
        # What a finished run needs no longer, also where a kill has left it.
        remove_leftovers(run.folder)
        _discard(run.folder / "checkpoints")
    done = _publish(study)
    error = done.error()
    write_status(study.folder, "done", reason=str(error or ""), exit_code=9 if error else 0)
    yield done


def _publish(study: Study) -> Studied:
    """Write the table and the chart of what is finished."""
    plan, results = study.plan, study.results()
    protocols = [result.linear.protocol for result in results if result.linear]
    notes = [
        f"protocol: {protocols[0] if protocols else plan.task.protocol.name}",
        plan.data_note(),
        *standing_notes(results, len(plan.runs())),
    ]
    title = f"{plan.study} study, {plan.task.dataset.title} {plan.task.samples.split}"
    table = score_table(title, plan.rows, results, notes)
    done = Studied(study.folder, table, study.folder / "plot.png", tuple(results))
    note = f"{title}. Large dots: means; bars: standard deviations; small dots: single seeds."
    replace_text(study.folder / "table.md", table.markdown())
    replace_json(study.folder / "table.json", done.to_dict())
    with replacing(done.plot) as file:
        score_chart(plan.rows, results, note).savefig(file, format="png")
    return done


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
            spent = Cost(time.perf_counter() - wall, time.process_time() - processor)
            with Records(self.study.folder / COSTS) as records:
                records.append({"run": self.name, "part": part, **asdict(spent)})


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
    config = read_config(run.folder / "config.toml", PretrainConfig())
    steps = [record["step"] for record in read_records(run.folder / "metrics.jsonl")]
    return RunResult(
        run.row.name,
        run.seed,
        failure,
        linear,
        kmeans,
        run.cost("training"),
        run.cost("probing"),
        {"steps": max(steps, default=0), **{name: config.get(name) for name in BUDGET}},
    )


def _train(run: RowRun) -> Generator[Notice | Progress, None, Path]:
    """Pre-train, or go on with what there is; returns the model's folder."""
    plan, name = run.study.plan, f"{run.row.name}, seed {run.seed}"
    options = plan.run_settings(run.row, run.seed)
    done = read_status(run.folder).get("status") == "done"
    if done or any(run.folder.glob("checkpoints/step-*")):
        options |= {"images": [], "resume": True}
        if not run.cost("training").wall:
            yield Notice(f"{name}: was killed; its training s counts from here", warning=True)
    else:
        _discard(run.folder)
        images = [plan.images.path(index) for index in range(len(plan.images))]
        options |= {"images": images, "preset": plan.preset}
    trained: Trained | None = None
    steps = 0
    with run.measured("training"):
        for event in pretraining_events(out=run.folder, **options):
            # A run notes the signals that come while it trains; those that came before are ours.
            run.study.require_going_on()
            match event:
                case Progress():
                    yield _of_row(event, run)
                case Started():
                    steps = event.total_steps
                case StepRecord():
                    yield _of_row(Progress("training", event.step, steps), run)
                case Notice() if event.warning and event.text not in run.study.told:
                    run.study.told.add(event.text)
                    yield Notice(f"{name}: {event.text}", warning=True)
                case Trained():
                    trained = event
    assert trained is not None, "training ends with its model or an error"
    return trained.model


def _probe(run: RowRun, model: Path) -> Generator[Progress, None, Probe]:
    """Score the frozen network."""
    plan = run.study.plan
    machine = {name: plan.settings.get(name, "auto") for name in ("device", "precision")}
    segmenter = Segmenter.load(model, **machine)
    with run.measured("probing"):
        for event in probe_events(segmenter, plan.task, plan.train, seed=run.seed):
            run.study.require_going_on()
            if isinstance(event, Probe):
                return event
            yield _of_row(event, run)
    raise AssertionError("a probe ends with its scores or an error")


def _of_row(event: Progress, run: RowRun) -> Progress:
    return Progress(f"{event.what} ({run.row.name})", event.done, event.total)


def _discard(path: Path) -> None:
    """Delete a folder where there is one. Raises OutputError."""
    try:
        if path.exists():
            discard(path)
    except OSError as error:
        raise output_error(path, error) from error
