"""`study`: the rows of an ablation, each from the same seeds and with the same budget → one table of probe scores.

Every run of a row is a pre-training run of its own; its frozen network is scored by a linear probe and by k-means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from densesiam_seg.errors import PartialError
from densesiam_seg.events import Notice, Progress
from densesiam_seg.io.files import remove_leftovers, replace_json, replace_text, replacing
from densesiam_seg.io.lock import run_lock
from densesiam_seg.io.records import Records
from densesiam_seg.io.run_directory import new_run_folder, noting_failure, write_status
from densesiam_seg.io.signals import stop_requests
from densesiam_seg.studies.plan import STUDY, checked_labels, plan_study, require_same, write_plan
from densesiam_seg.studies.runs import (
    COSTS,
    ROWS,
    RowRun,
    RunResult,
    Study,
    finish,
    read_results,
    tidy,
)
from densesiam_seg.studies.tables import Table, score_chart, score_table, standing_notes

NAMES = frozenset({STUDY, ROWS, COSTS, "runs", "table.md", "table.json", "plot.png", "run.json"})
"""What a study writes into its folder."""


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
        results = map(asdict, self.results)
        return {"folder": str(self.folder), **self.table.to_dict(), "results": list(results)}


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
        with noting_failure(folder):
            write_status(folder, "running")
            if not resume:
                write_plan(folder, plan)
            yield from _study(Study(folder, plan, stop))


def _study(study: Study) -> Iterator[StudyEvent]:
    """Every run that is missing, and the table after each of them."""
    plan = study.plan
    runs = [RowRun(study, row, seed) for row, seed in plan.runs()]
    yield Notice(
        f"{plan.study} study: {len(plan.rows)} rows x {len(plan.seeds)} seeds = {len(runs)} runs, into {study.folder}"
    )
    for item in plan.images.skipped:
        yield Notice(f"skipped ({item.reason}): {item.message}", warning=True)
    finished = {(result.row, result.seed) for result in read_results(study.folder)}
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
            publish(study)
            yield Notice(f"{place}: {result}")
        # Also after a killed run.
        tidy(run)
    done = publish(study)
    error = done.error()
    write_status(study.folder, "done", reason=str(error or ""), exit_code=9 if error else 0)
    yield done


def publish(study: Study) -> Studied:
    """Write the table and the chart of what is finished."""
    plan, results = study.plan, read_results(study.folder)
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
