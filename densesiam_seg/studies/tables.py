"""Results of many runs → one table: mean and standard deviation over seeds, as Markdown and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Spread:
    """Numbers of several seeds: their mean, and their standard deviation (n - 1), which one number does not have."""

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


@dataclass(frozen=True)
class Table:
    """Rows of cells below a title; `notes` are the lines that say what fixes the numbers."""

    title: str
    columns: tuple[Column, ...]
    names: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """The table as Markdown, its columns aligned for terminals; a cell without a value shows `-`."""
        assert all(len(row) == len(self.columns) for row in self.cells), "a cell for every column"
        best = [self._best(index) for index in range(len(self.columns))]
        head = ["row", *(column.title for column in self.columns)]
        body = [
            [name, *(self._shown(index, cell, best[index]) for index, cell in enumerate(row))]
            for name, row in zip(self.names, self.cells, strict=True)
        ]
        lines = [[_escaped(text) for text in line] for line in (head, *body)]
        widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        padded = [_padded(line, widths) for line in (lines[0], rule, *lines[1:])]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"# {self.title}", "", *padded, "", *notes]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        rows = [
            {
                "row": name,
                **{
                    column.key: asdict(cell) if isinstance(cell, Spread) else cell
                    for column, cell in zip(self.columns, row, strict=True)
                },
            }
            for name, row in zip(self.names, self.cells, strict=True)
        ]
        return {"title": self.title, "rows": rows, "notes": list(self.notes)}

    def _best(self, index: int) -> float | None:
        """The best number of a column; None where there is nothing to compare."""
        numbers = [n for row in self.cells if (n := _number(row[index])) is not None]
        choose: Callable[[list[float]], float] = (
            max if self.columns[index].best == "highest" else min
        )
        return choose(numbers) if len(numbers) > 1 else None

    def _shown(self, index: int, cell: Cell, best: float | None) -> str:
        digits = self.columns[index].digits
        match cell:
            case None:
                return "-"
            case str():
                return cell
            case Spread():
                text = cell.shown(digits)
            case _:
                text = f"{cell:.{digits}f}"
        return f"**{text}**" if best is not None and _number(cell) == best else text


def _number(cell: Cell) -> float | None:
    if isinstance(cell, Spread):
        return cell.mean
    return None if isinstance(cell, str) else cell


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _padded(texts: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(texts, widths, strict=True)
    cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
    return f"| {' | '.join(cells)} |"
