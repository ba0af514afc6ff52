"""The chart: every mark where its number is."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from densesiam_seg.pictures.charts import MEAN, SEED, dot_chart


def drawn(*values: list[float]) -> Axes:
    """The only panel of a chart whose rows have these values."""
    names = [f"row {number}" for number in range(len(values))]
    return dot_chart(names, {"title": values}, "unit", "note").axes[0]


def dots(axes: Axes, colour: str) -> list[tuple[float, float]]:
    """Value and row of every dot of a colour."""
    lines = [line for line in axes.lines if line.get_color() == colour and line.get_marker() != "|"]
    return [(float(x), float(y)) for line in lines for x, y in np.asarray(line.get_xydata())]


def test_every_row_has_its_mean() -> None:
    axes = drawn([10.0], [20.0], [15.0])
    assert dots(axes, MEAN) == [(10, 0), (20, 1), (15, 2)]
    assert dots(axes, SEED) == []
    bottom, top = axes.get_ylim()
    assert bottom > 2 > 0 > top
    assert [label.get_text() for label in axes.get_yticklabels()] == ["row 0", "row 1", "row 2"]


def test_bars_are_one_deviation_to_either_side_and_seeds_lie_below() -> None:
    """Seeds 10 and 20: mean 15, deviation 50^0.5."""
    axes = drawn([10.0, 20.0])
    ((mean, row),) = dots(axes, MEAN)
    assert (mean, row) == (15, 0)
    (bar,) = axes.collections[0].get_segments()  # type: ignore[attr-defined]
    np.testing.assert_allclose(bar, [[15 - 50**0.5, 0], [15 + 50**0.5, 0]])
    assert [value for value, _ in dots(axes, SEED)] == [10, 20]
    assert all(0 < place < 0.5 for _, place in dots(axes, SEED))


def test_a_row_without_a_result_says_so() -> None:
    axes = drawn([1.0], [])
    assert [(text.get_text(), text.get_position()[1]) for text in axes.texts] == [("no result", 1)]
    assert len(dots(axes, MEAN)) == 1


@pytest.mark.parametrize("values", [[[1.0], [5000.0]], [[], []]])
def test_panels_have_their_own_axes_and_the_note_stands_below(values: list[list[float]]) -> None:
    panels = {f"panel {k}": [values[k]] for k in range(2)}
    note = "$\\price$ " + "words " * 20
    figure = dot_chart(["a"], panels, "unit", note)
    assert [axes.get_title() for axes in figure.axes] == ["panel 0", "panel 1"]
    assert figure.axes[0].get_xlim() != figure.axes[1].get_xlim() or not values[0]
    assert figure.get_supxlabel() == note
    file = io.BytesIO()
    figure.savefig(file, format="png")
    with Image.open(file) as picture:
        assert picture.width > 1000
        assert picture.height > 100
