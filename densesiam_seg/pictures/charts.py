"""Scores of several seeds → a chart: a line for each row, its mean with the standard deviation, a dot for each seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEAN, SEED, FAINT = "#1858a8", "#f0963c", "0.5"

Values = Sequence[Sequence[float]]
"""A list for every row, with one number per seed, or none where the row has no result."""


def dot_chart(rows: Sequence[str], panels: Mapping[str, Values], unit: str, note: str) -> Figure:
    """A figure whose lines are `rows`, from the top; `panels` stand side by side below their titles.

    A large dot is a row's mean, its bar one standard deviation (n - 1) to either side; small dots are the seeds.
    `unit` is that of all panels, `note` a line below them.
    """
    # Its import takes half a second.
    from matplotlib.figure import Figure

    figure = Figure((3 + 5 * len(panels), 1.6 + 0.45 * len(rows)), layout="constrained")
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(every, panels.items(), strict=True):
        axes.set_title(title)
        axes.set_xlabel(unit)
        axes.grid(axis="x")
        for row, seeds in enumerate(values):
            _draw_row(axes, row, seeds)
    every[0].set_yticks(range(len(rows)), rows)
    every[0].set_ylim(len(rows) - 0.5, -0.5)
    # The note holds a user's own words, in which a dollar is a dollar.
    plain = {"parse_math": False, "usetex": False}
    figure.supxlabel(note, x=0.01, ha="left", fontsize="small", color=FAINT, **plain)
    return figure


def _draw_row(axes: Axes, row: int, seeds: Sequence[float]) -> None:
    if not seeds:
        middle = axes.get_yaxis_transform()
        axes.text(0.5, row, "no result", transform=middle, color=FAINT, ha="center", va="center")
        return
    deviation = statistics.stdev(seeds) if len(seeds) > 1 else None
    axes.errorbar(statistics.fmean(seeds), row, xerr=deviation, fmt="o", color=MEAN, capsize=4)
    if len(seeds) > 1:
        # Below the line, where the mean does not hide them.
        axes.plot(seeds, [row + 0.25] * len(seeds), ".", color=SEED)
