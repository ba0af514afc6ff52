"""Scores of several seeds → a chart: a line for each row, its mean with the standard deviation, a dot for each seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEAN, SEED, FAINT = "#1858a8", "#f0963c", "0.5"


@dataclass(frozen=True)
class Panel:
    """One axis: `values` hold a list for every row, with one number per seed, or none where the row has no result."""

    title: str
    unit: str
    values: Sequence[Sequence[float]]


def dot_chart(rows: Sequence[str], panels: Sequence[Panel], note: str) -> Figure:
    """A figure whose lines are `rows`, from the top, and whose panels stand side by side; `note` is a line below.

    A large dot is a row's mean, its bar one standard deviation (n - 1) to either side; small dots are the seeds.
    """
    # Its import takes half a second.
    from matplotlib.figure import Figure

    figure = Figure((3 + 5 * len(panels), 1.6 + 0.45 * len(rows)), layout="constrained")
    each = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(each, panels, strict=True):
        _draw_panel(axes, panel)
    figure.axes[0].set_yticks(range(len(rows)), rows)
    figure.axes[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(note, x=0.01, ha="left", fontsize="small", color=FAINT)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.unit)
    axes.grid(axis="x")
    for row, values in enumerate(panel.values):
        if not values:
            middle = axes.get_yaxis_transform()
            axes.text(
                0.5, row, "no result", transform=middle, color=FAINT, ha="center", va="center"
            )
            continue
        deviation = statistics.stdev(values) if len(values) > 1 else None
        axes.errorbar(statistics.fmean(values), row, xerr=deviation, fmt="o", color=MEAN, capsize=4)
        if len(values) > 1:
            # Below the line, where the mean does not hide them.
            axes.plot(values, [row + 0.25] * len(values), ".", color=SEED)
