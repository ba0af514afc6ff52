"""Results of single jobs → tables, the protocol card, one JSON object. Scores are percentages, times seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rows import Row

from densesiam_seg.studies.tables import Cell, Column, Spread, Table, spread

Result = Mapping[str, Any]

COLUMNS = (
    Column("mean_iou", "mean IoU"),
    Column("pixel_accuracy", "pixel accuracy"),
    Column("clusters_in_use", "clusters in use", digits=1),
    Column("training_processor_seconds", "training s", digits=0),
    Column("peak_gigabytes", "peak GB", digits=1),
)
JUDGED = frozenset({"mean_iou", "pixel_accuracy"})
"""Columns whose best figure is set in bold."""
DIFFERENCE = Column("difference", "mean IoU to default")


@dataclass(frozen=True)
class Line:
    """A row with the results of its seeds, in the order of the seeds; `asked` is how many there should be."""

    name: str
    row: Row
    results: Sequence[Result]
    asked: int

    @property
    def title(self) -> str:
        """The row's title, with the number of its seeds where some are missing."""
        done = len(self.results)
        return self.row.title + (f" ({done} of {self.asked} seeds)" if done < self.asked else "")

    def values(self, key: str) -> list[float]:
        """The figure of each seed that has one."""
        return [result[key] for result in self.results if result[key] is not None]

    def of_class(self, name: str) -> list[float]:
        """The IoU of a class, of each seed; empty for a class that no pixel has."""
        return [r["iou"][name] for r in self.results if r["iou"][name] is not None]

    def cell(self, values: Sequence[float], digits: int, *, judged: bool = True) -> Cell:
        """Mean and deviation, or one number where no seed matters; plain text where it is not to be compared."""
        found = spread(values)
        if found is None:
            return None
        judged = judged and self.row.comparable
        if not self.row.seeded:
            return found.mean if judged else f"{found.mean:.{digits}f}"
        return found if judged else found.shown(digits)


def score_table(title: str, lines: Sequence[Line], notes: Sequence[str]) -> Table:
    """The main table."""
    cells = [
        tuple(
            line.cell(line.values(column.key), column.digits, judged=column.key in JUDGED)
            for column in COLUMNS
        )
        for line in lines
    ]
    return Table(title, COLUMNS, tuple(line.title for line in lines), tuple(cells), tuple(notes))


def class_table(title: str, lines: Sequence[Line]) -> Table:
    """IoU by class."""
    names = list(lines[0].results[0]["iou"])
    columns = tuple(Column(name, name, digits=1) for name in names)
    cells = [tuple(line.cell(line.of_class(name), 1) for name in names) for line in lines]
    return Table(title, columns, tuple(line.title for line in lines), tuple(cells), ())


def ablation_table(title: str, lines: Sequence[Line], notes: Sequence[str]) -> Table:
    """The main table, and what each change brings seed by seed."""
    plain = score_table(title, lines, notes)
    first, *others = lines
    differences = [None, *(_difference(line, first) for line in others)]
    columns = (*plain.columns[:1], DIFFERENCE, *plain.columns[1:])
    cells = tuple(
        (*row[:1], difference, *row[1:])
        for row, difference in zip(plain.cells, differences, strict=True)
    )
    return Table(title, columns, plain.names, cells, plain.notes)


def _difference(line: Line, default: Line) -> Spread | None:
    """Mean and deviation of the seeds' own differences."""
    base = {result["seed"]: result["mean_iou"] for result in default.results}
    pairs = [(r["mean_iou"], base[r["seed"]]) for r in line.results if r["seed"] in base]
    return spread([ours - theirs for ours, theirs in pairs])


def card(lines: Sequence[Line], seeds: Sequence[int], command: str, *, quick: bool) -> list[str]:
    """What fixes the numbers, a line each."""
    results = [result for line in lines for result in line.results]
    # Rows of another protocol name it themselves.
    tasks = [r["task"] for line in lines for r in line.results if not line.row.whole] or [
        results[0]["task"]
    ]
    task = tasks[0]
    scored, learned = task["scored"], task["learned_from"]
    others = sorted({r["task"]["protocol"] for r in results} - {task["protocol"]})
    revisions = sorted({r["revision"] for r in results})
    any_labels = any(line.row.labels for line in lines)
    notes = [
        f"data: {task['dataset']}; scored on {scored['split']} ({scored['images']} images, names "
        f"{scored['names_digest'][:12]}), learned from {learned['split']} ({learned['images']} images, names "
        f"{learned['names_digest'][:12]}); contents of both, labels included, {task['contents_digest'][:12]}",
        f"protocol: {task['protocol']}; labels nearest",
        *(
            f"protocol of whole images, not to be compared with the others: {each}"
            for each in others
        ),
        f"clusters: {task['clusters']}, as many as classes; one confusion matrix over the whole set; one matching "
        "(Hungarian, most matched pixels), made on the scored split for each row and seed",
        "selection: none; the last checkpoint, the row's own read-out, one start of k-means; labels choose nothing",
        "labels: for scoring alone"
        + (
            ", but for the row that says that it uses those of the training split"
            if any_labels
            else ""
        ),
        f"seeds: {', '.join(map(str, seeds))}; mean ± standard deviation (n - 1); rows without ± have no seed",
        "training s: processor seconds of everything before scoring, decoding included",
        _weights(lines),
        *_machine(results),
        f"command: {command}; revision {', '.join(revisions)}",
    ]
    return ["QUICK: fewer steps and seeds, no measurement", *notes] if quick else notes


def _weights(lines: Sequence[Line]) -> str:
    """What the rows start from."""
    learned = [line.row.short for line in lines if line.row.pretrained]
    if not learned:
        return "weights: none, every row from scratch"
    others = len(learned) < len(lines)
    return "weights: ImageNet's, as packaged" + f", in {', '.join(learned)} alone" * others


def _machine(results: Sequence[Result]) -> list[str]:
    """Versions and processor, a line for each kind that there was."""
    found = []
    for result in results:
        facts = result["environment"]
        packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        found.append(
            f"machine: {facts['machine']} {facts['cpu_capability']}, {facts['device']}, {facts['threads']} threads; "
            f"Python {facts['python']}, {packages}"
        )
    return sorted(set(found))


def summary(lines: Sequence[Line], notes: Sequence[str]) -> dict[str, Any]:
    """Everything as JSON: the card, and of each row its settings, its spreads and its seeds."""
    return {"card": list(notes), "rows": [_row(line) for line in lines]}


def _row(line: Line) -> dict[str, Any]:
    first = line.results[0]
    keys = ("mean_iou", "pixel_accuracy", "mean_accuracy", "things_iou", "stuff_iou")
    costs = ("clusters_in_use", "training_processor_seconds", "peak_gigabytes")
    fixed = ("task", "clusters", "readout", "matching", "settings")
    kept = ("seed", "revision", *keys, *costs, "training_wall_seconds")
    return {
        "row": line.name,
        "title": line.row.title,
        "uses_labels": line.row.labels,
        **{name: first[name] for name in fixed},
        **{name: _plain(spread(line.values(name))) for name in (*keys, *costs)},
        "iou": {name: _plain(spread(line.of_class(name))) for name in first["iou"]},
        "seeds": [{name: result[name] for name in kept} for result in line.results],
    }


def _plain(found: Spread | None) -> dict[str, float | None] | None:
    return {"mean": found.mean, "deviation": found.deviation} if found else None
