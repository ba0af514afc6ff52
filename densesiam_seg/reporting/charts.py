"""Charts as SVG elements that a page takes in: their ink is the page's own, so they are right in light and dark.

matplotlib draws them; what it writes is trimmed to valid HTML without identifiers that two charts would share.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import one_line
from densesiam_seg.reporting.run_files import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = {"#010101": "var(--ink)", "#020202": "var(--quiet)", "#030303": "var(--line)"}
"""Colours that stand for those of the page."""
INK, QUIET, LINE = _INK
ACCENT = "#4c78c8"
LINES = (ACCENT, "#e08a3c", "#5aa469", "#b0679c", "#c9a227", "#6c8ea0")
"""Colours of lines that can be told apart, on white and on black."""
MANY = 2000
"""Most points of a line; of more, means are drawn."""
LONGEST = 24
"""Characters of a name beside a picture."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": LINE,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.parse_math": False,
}


def loss_chart(
    steps: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]
) -> str | None:
    """The losses over the steps, else over the epochs; None where there is no record."""
    records = steps or epochs
    losses = records[-1].get("losses") if records else None
    names = list(losses) if isinstance(losses, Mapping) else []
    lines = {str(name): numbers(records, "losses", name) for name in names if name != "total"}
    if len(lines) != 1 and "total" in names:
        lines["weighted sum"] = numbers(records, "losses", "total")
    places = numbers(records, "step")
    return _line_chart("Losses", places, lines, "step")


def health_chart(epochs: Sequence[Mapping[str, Any]]) -> str | None:
    """What tells without labels how a training goes, over the epochs; None where there is no record."""
    used = [
        found / max(len(record.get("shares") or ()), 1)
        for found, record in zip(numbers(epochs, "clusters_in_use"), epochs, strict=True)
    ]
    lines = {
        "the two views agree": numbers(epochs, "agreement"),
        "clusters in use": used if any(record.get("shares") for record in epochs) else [],
        "evenness of their shares": numbers(epochs, "entropy"),
        "spread of the projections": numbers(epochs, "spread"),
    }
    places = [place + 1 for place in numbers(epochs, "epoch")]
    return _line_chart("Health", places, lines, "epoch", shares=True)


def suggestion_chart(suggestion: Mapping[str, Any] | None) -> str | None:
    """The scores of each number of clusters; None for a suggestion of another form."""
    if not suggestion:
        return None
    counts, scores = suggestion.get("counts"), suggestion.get("scores")
    if not isinstance(counts, list) or not isinstance(scores, dict):
        return None
    places = numbers([{"count": count} for count in counts], "count")
    lines = {
        str(name): numbers([{"score": value} for value in values], "score")
        for name, values in scores.items()
        if isinstance(values, list) and len(values) == len(counts)
    }
    drawn = {name: line for name, line in lines.items() if np.isfinite(line).any()}
    if not drawn or not np.isfinite(places).any():
        return None
    chosen = numbers([suggestion], "chosen")[0]

    def draw(figure: Figure) -> None:
        every = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, (name, line) in zip(every, drawn.items(), strict=True):
            axes.set_title(one_line(name))
            axes.plot(*_thinned(places, line), color=ACCENT, marker="o", markersize=3)
            axes.set_xlabel("clusters K")
            if math.isfinite(chosen):
                axes.axvline(chosen, color=QUIET, linestyle="--", linewidth=1)
            _whole_numbers(axes)

    return _svg(draw, (3.0 * max(len(drawn), 2), 2.6), "Scores of each number of clusters")


def _line_chart(
    title: str,
    places: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    what: str,
    *,
    shares: bool = False,
) -> str | None:
    """Lines over `places`, without those that have no number; of `shares` the axis goes from 0 to 1."""
    drawn = {name: line for name, line in lines.items() if np.isfinite(line).any()}
    if not drawn:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title(title)
        for number, (name, line) in enumerate(drawn.items()):
            x, y = _thinned(places, line)
            colour = LINES[number % len(LINES)]
            axes.plot(x, y, label=one_line(name), color=colour, marker="o" if len(x) < 2 else None)
        axes.set_xlabel(what)
        if len(places) == 1:
            axes.set_xlim(places[0] - 1, places[0] + 1)
        if shares:
            axes.set_ylim(-0.03, 1.03)
        _whole_numbers(axes)
        figure.legend(loc="outside lower left", ncols=3, fontsize="small", labelcolor=QUIET)

    return _svg(draw, (5.6, 3.2), title)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))


def _thinned(
    places: Sequence[float], line: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `MANY` points of a line, each the mean of its neighbours where there are more."""
    x, y = np.asarray(places, float), np.asarray(line, float)
    sound = np.isfinite(x) & np.isfinite(y)
    x, y = x[sound], y[sound]
    if len(x) <= MANY:
        return x, y
    parts = [np.array_split(values, MANY) for values in (x, y)]
    return tuple(np.array([part.mean() for part in each]) for each in parts)  # type: ignore[return-value]


def confusion_picture(
    counts: NDArray[np.int64],
    classes: Sequence[str],
    clusters: Sequence[str],
    order: Sequence[int],
) -> str:
    """Of each class the shares of the clusters in `order`, as squares that are the fuller the larger the share."""
    shares = counts[:, list(order)] / np.maximum(counts.sum(1, keepdims=True), 1)

    def draw(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        for row, column in np.argwhere(shares >= 0.005).tolist():
            share = float(shares[row, column])
            place = (column - 0.5, row - 0.5)
            alpha = 0.06 + 0.94 * share
            axes.add_patch(Rectangle(place, 1, 1, facecolor=ACCENT, linewidth=0, alpha=alpha))
            if share >= 0.1:
                ink = "white" if share > 0.6 else INK
                text = f"{100 * share:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
        axes.set_xlim(-0.5, len(order) - 0.5)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        axes.set_yticks(range(len(classes)), [_short(name) for name in classes])
        axes.set_xticks(range(len(order)), [_short(clusters[k]) for k in order], rotation=90)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.set_xlabel("clusters")
        axes.set_ylabel("classes")

    size = (2.2 + 0.3 * max(len(order), 6), 1.8 + 0.3 * max(len(classes), 3))
    return _svg(draw, size, "Confusion matrix")


def _short(name: str) -> str:
    plain = one_line(name)
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "…"


_drawn = 0


def _svg(draw: Any, size: tuple[float, float], title: str) -> str:
    """A figure of `size` in inches → an `<svg>` element."""
    # Its import takes half a second.
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(size, layout="constrained")
        figure.patch.set_visible(False)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_visible(False)
            axes.set_axisbelow(True)
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=none)
    return trimmed(file.getvalue(), title)


def trimmed(text: str, title: str) -> str:
    """An SVG file → an element of a page, with the page's colours and an accessible name."""
    global _drawn
    _drawn += 1
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", text))

    def mark(found: re.Match[str]) -> str:
        return f' id="chart{_drawn}-{found[1]}"' if found[1] in used else ""

    text = re.sub(r" id=\"([^\"]+)\"", mark, text)
    text = re.sub(r"(href=\"#|url\(#)", rf"\1chart{_drawn}-", text)
    text = re.sub(r" xmlns(:xlink)?=\"[^\"]*\"", "", text).replace("xlink:href", "href")
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    for colour, meant in _INK.items():
        text = text.replace(colour, meant)
    text = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", text)
    text = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", text)
    text = re.sub(r"<defs>\s*</defs>", "", text)
    return text.replace("<svg", f'<svg class="chart" role="img" aria-label="{title}"', 1).strip()
