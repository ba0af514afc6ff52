"""Finished runs of a study → its table and its chart.

Scores are percentages, times seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from densesiam_seg.errors import ModelError
from densesiam_seg.evaluation.evaluate import Evaluation
from densesiam_seg.pictures.charts import Panel, dot_chart
from densesiam_seg.studies.ablations import PAPER_TASK, Row
from densesiam_seg.studies.tables import Cell, Column, Table, spread

COLUMNS = (
    Column("linear_mean_iou", "linear probe mean IoU"),
    Column("linear_pixel_accuracy", "pixel accuracy"),
    Column("kmeans_mean_iou", "k-means mean IoU"),
    Column("kmeans_pixel_accuracy", "pixel accuracy"),
    Column("training_seconds", "training s", "lowest", 0),
    Column("paper_ap", "paper AP", digits=1),
    Column("paper_ap50", "AP50", digits=1),
    Column("paper_ap75", "AP75", digits=1),
)


@dataclass(frozen=True)
class Cost:
    """What a part of the work took, in seconds; `processor` counts every thread."""

    wall: float = 0.0
    processor: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.processor + other.processor)


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
        return cls(
            scores.mean_iou,
            scores.pixel_accuracy,
            dict(zip(scores.names, scores.iou, strict=True)),
            evaluation.protocol,
            evaluation.readout,
            evaluation.clusters,
        )


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
    """The run's steps and the settings that say how long and on what it trained."""

    def __str__(self) -> str:
        if self.linear is None or self.kmeans is None:
            return f"failed: {self.failure}"
        return (
            f"linear probe {self.linear.mean_iou:.2f} mean IoU, {self.linear.pixel_accuracy:.2f} pixel accuracy; "
            f"k-means {self.kmeans.mean_iou:.2f} and {self.kmeans.pixel_accuracy:.2f}; "
            f"{(self.training + self.probing).wall:.0f} s"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> RunResult:
        """The inverse of `to_dict`. Raises ModelError where members do not fit."""
        try:
            linear, kmeans = record["linear"], record["kmeans"]
            return cls(
                record["row"],
                record["seed"],
                record["failure"],
                linear and ProbeScore(**linear),
                kmeans and ProbeScore(**kmeans),
                Cost(**record["training"]),
                Cost(**record["probing"]),
                record["budget"],
            )
        except (KeyError, TypeError) as error:
            raise ModelError(
                f"rows.jsonl: a line is not a row of a study ({error}); restore the file or start a new study"
            ) from error


def score_table(
    title: str, rows: Sequence[Row], results: Sequence[RunResult], notes: Sequence[str]
) -> Table:
    """Our scores of each row beside the paper's figures; failures and `notes` stand below."""
    asked = max((len(_of(row, results)) for row in rows), default=0)
    return Table(
        title,
        COLUMNS,
        tuple(_name(row, _of(row, results), asked) for row in rows),
        tuple(_cells(row, _of(row, results)) for row in rows),
        (*_failures(results), *notes),
    )


def _of(row: Row, results: Sequence[RunResult]) -> list[RunResult]:
    return [result for result in results if result.row == row.name]


def _name(row: Row, results: Sequence[RunResult], asked: int) -> str:
    """The row's name, with the number of its seeds where that is not everybody's."""
    scored = sum(result.failure is None for result in results)
    return row.name if scored == asked else f"{row.name} ({scored} of {asked} seeds)"


def _cells(row: Row, results: Sequence[RunResult]) -> tuple[Cell, ...]:
    scored = [(r.linear, r.kmeans, r.training) for r in results if r.linear and r.kmeans]
    failed = next((f"failed: {r.failure}" for r in results if r.failure is not None), None)
    return (
        spread([linear.mean_iou for linear, _, _ in scored]) or failed,
        spread([linear.pixel_accuracy for linear, _, _ in scored]),
        spread([kmeans.mean_iou for _, kmeans, _ in scored]),
        spread([kmeans.pixel_accuracy for _, kmeans, _ in scored]),
        spread([training.processor for _, _, training in scored]),
        *(row.paper or (None, None, None)),
    )


def _failures(results: Sequence[RunResult]) -> list[str]:
    return [f"failed: {r.row}, seed {r.seed}: {r.failure}" for r in results if r.failure]


def standing_notes(results: Sequence[RunResult], total: int) -> list[str]:
    """What the numbers mean and what they cost."""
    training = sum((result.training for result in results), Cost())
    probing = sum((result.probing for result in results), Cost())
    seeds = sorted({result.seed for result in results})
    of_all = f"{len(results)} of {total} runs finished"
    budgets = [
        "budget per run: " + ", ".join(f"{name} {value}" for name, value in result.budget.items())
        for result in results[:1]
    ]
    return [
        *budgets,
        f"seeds: {', '.join(map(str, seeds))}; mean ± standard deviation (n - 1); {of_all}",
        "labels: pre-training uses none; the linear probe is trained on the labels of the train split; the k-means "
        "probe uses labels for scoring alone",
        "training s: processor seconds of one run's pre-training, decoding included",
        f"total cost: {_shown(training + probing)} (pre-training {_shown(training)}; probes {_shown(probing)})",
        f"paper: {PAPER_TASK}; only its order can be compared",
    ]


def _shown(cost: Cost) -> str:
    return f"{cost.processor:.0f} s of processor time, {cost.wall:.0f} s of wall time"


def score_chart(rows: Sequence[Row], results: Sequence[RunResult], note: str) -> Image.Image:
    """Both probes' mean IoU by row and seed."""
    finished = [(row, [r for r in _of(row, results) if r.linear and r.kmeans]) for row in rows]
    linear = [[r.linear.mean_iou for r in found if r.linear] for _, found in finished]
    kmeans = [[r.kmeans.mean_iou for r in found if r.kmeans] for _, found in finished]
    panels = [
        Panel("linear probe (trained on labels)", "mean IoU, %", linear),
        Panel("k-means probe (labels for scoring alone)", "mean IoU, %", kmeans),
    ]
    return dot_chart([row.name for row in rows], panels, note=note)
