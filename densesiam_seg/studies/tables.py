"""Results of many runs → a table of means and standard deviations over seeds, as Markdown and JSON, and a chart.

Scores are percentages, times seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from densesiam_seg.pictures.charts import dot_chart
from densesiam_seg.studies.ablations import Row
from densesiam_seg.studies.runs import Cost, ProbeScore, RunResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Spread:
    """Numbers of several seeds: their mean, and their standard deviation (n - 1), None for one number."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    def shown(self, digits: int) -> str:
        """`31.20 ± 0.40`."""
        deviation = "-" if self.deviation is None else f"{self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {deviation}"


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and standard deviation; None without values."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, tuple(values))


Cell = Spread | float | str | None


@dataclass(frozen=True)
class Column:
    """A column's name in JSON, its title, and whether its highest or its lowest mean is the best one, set in bold."""

    key: str
    title: str
    best: Literal["highest", "lowest"] = "highest"
    digits: int = 2

    def texts(self, cells: Sequence[Cell]) -> list[str]:
        """The title and the cells as text; a cell without a value is `-`."""
        means = [cell.mean if isinstance(cell, Spread) else cell for cell in cells]
        numbers = [mean for mean in means if isinstance(mean, float)]
        best = max(numbers, default=None) if self.best == "highest" else min(numbers, default=None)
        texts = [self.title]
        for cell, mean in zip(cells, means, strict=True):
            text = cell.shown(self.digits) if isinstance(cell, Spread) else str(cell or "-")
            if isinstance(cell, float):
                text = f"{cell:.{self.digits}f}"
            # A single number is not marked as the best.
            texts.append(f"**{text}**" if mean == best and len(numbers) > 1 else text)
        return texts


@dataclass(frozen=True)
class Table:
    """Rows of cells below a title; `notes` are the lines that say what fixes the numbers."""

    title: str
    columns: tuple[Column, ...]
    names: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """The table as Markdown, its columns aligned for terminals."""
        columns = [_aligned(["row", *self.names], right=False)]
        for column, cells in zip(self.columns, zip(*self.cells, strict=True), strict=True):
            columns.append(_aligned(column.texts(cells), right=True))
        lines = [f"| {' | '.join(line)} |" for line in zip(*columns, strict=True)]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"# {self.title}", "", *lines, "", *notes]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        keys = ["row", *(column.key for column in self.columns)]
        rows = [
            {
                key: asdict(cell) if isinstance(cell, Spread) else cell
                for key, cell in zip(keys, (name, *cells), strict=True)
            }
            for name, cells in zip(self.names, self.cells, strict=True)
        ]
        return {"title": self.title, "rows": rows, "notes": list(self.notes)}


def _aligned(texts: Sequence[str], *, right: bool) -> list[str]:
    """A column's title, the rule below it and its cells, all of one width."""
    plain = [" ".join(text.split()).replace("|", "\\|") for text in texts]
    width = max(map(len, plain))
    rule = "-" * (width - 1) + (":" if right else "-")
    title, *cells = [text.rjust(width) if right else text.ljust(width) for text in plain]
    return [title, rule, *cells]


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


def score_table(
    title: str, rows: Sequence[Row], results: Sequence[RunResult], notes: Sequence[str]
) -> Table:
    """Our scores of each row beside the paper's figures; failures and `notes` stand below.

    A row with fewer scored seeds than others have runs is named with their number.
    """
    runs = [[result for result in results if result.row == row.name] for row in rows]
    asked = max(map(len, runs))
    names, cells = [], []
    for row, own in zip(rows, runs, strict=True):
        linear, kmeans = ([each[place] for each in _scores(own)] for place in (0, 1))
        few = f" ({len(linear)} of {asked} seeds)" if len(linear) < asked else ""
        names.append(row.name + few)
        failed = next((str(result) for result in own if result.failure), None)
        cells.append(
            (
                spread([each.mean_iou for each in linear]) or failed,
                spread([each.pixel_accuracy for each in linear]),
                spread([each.mean_iou for each in kmeans]),
                spread([each.pixel_accuracy for each in kmeans]),
                spread([result.training.processor for result in own if not result.failure]),
                *(row.paper or (None, None, None)),
            )
        )
    failures = [f"failed: {r.row}, seed {r.seed}: {r.failure}" for r in results if r.failure]
    return Table(title, COLUMNS, tuple(names), tuple(cells), (*failures, *notes))


def _scores(results: Sequence[RunResult]) -> list[tuple[ProbeScore, ProbeScore]]:
    """Both probes' scores of the runs that have them."""
    return [(each.linear, each.kmeans) for each in results if each.linear and each.kmeans]


def standing_notes(results: Sequence[RunResult], total: int) -> list[str]:
    """What the numbers mean and what they cost."""
    training = sum((result.training for result in results), Cost())
    probing = sum((result.probing for result in results), Cost())
    seeds = ", ".join(map(str, sorted({result.seed for result in results})))
    budget = ", ".join(f"{name} {value}" for name, value in results[0].budget.items())
    return [
        f"budget per run: {budget}",
        f"seeds: {seeds}; mean ± standard deviation (n - 1); {len(results)} of {total} runs finished",
        "labels: pre-training uses none; the linear probe is trained on the labels of the train split; the k-means "
        "probe uses labels for scoring alone",
        "training s: processor seconds of one run's pre-training, decoding included",
        f"total cost: {training + probing} (pre-training {training}; probes {probing})",
        "paper: VOC07+12 detection AP after ImageNet pre-training: another task; only its order can be compared",
    ]


def score_chart(rows: Sequence[Row], results: Sequence[RunResult], note: str) -> Figure:
    """Both probes' mean IoU by row and seed."""
    scores = [_scores([each for each in results if each.row == row.name]) for row in rows]
    titles = ("linear probe (trained on labels)", "k-means probe (labels for scoring alone)")
    panels = {
        title: [[pair[place].mean_iou for pair in own] for own in scores]
        for place, title in enumerate(titles)
    }
    return dot_chart([row.name for row in rows], panels, "mean IoU, %", note)
