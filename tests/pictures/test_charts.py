"""The chart: round ticks, and every mark where its number is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.pictures.charts import (
    BACKGROUND,
    GAP,
    LINE,
    MEAN,
    PANEL,
    RADIUS,
    SEED,
    TOP,
    Panel,
    axis,
    dot_chart,
)


def places(picture: Image.Image, colour: tuple[int, int, int]) -> NDArray[np.intp]:
    """Row and column of every pixel of exactly that colour."""
    return np.argwhere((np.asarray(picture) == colour).all(-1))


def panel_left(picture: Image.Image, panels: int) -> int:
    """Where the first panel begins: the names beside it are as wide as they need to be."""
    return picture.width - GAP - panels * PANEL - (panels - 1) * GAP


class TestAxis:
    def test_ticks_are_round(self) -> None:
        """A range of 3.7 in about five steps: steps of 1 from 30 to 35."""
        found = axis([30.4, 34.1], 0, 100)
        assert found.ticks == (30, 31, 32, 33, 34, 35)
        assert (found.low, found.high, found.digits) == (30, 35, 0)
        assert (found.place(30), found.place(32.5), found.place(35)) == (0, 50, 100)

    def test_ends_that_are_ticks_stay(self) -> None:
        assert axis([10.0, 20.0], 0, 1).ticks == (10, 12, 14, 16, 18, 20)

    def test_small_steps_have_decimals(self) -> None:
        found = axis([0.12, 0.19], 0, 1)
        assert found.ticks == pytest.approx((0.12, 0.14, 0.16, 0.18, 0.2))
        assert found.digits == 2

    @pytest.mark.parametrize("values", [[], [0.0], [0.0, 0.0]])
    def test_nothing_to_span(self, values: list[float]) -> None:
        assert (axis(values, 0, 1).low, axis(values, 0, 1).high) == (-1, 1)

    def test_one_value_is_in_the_middle(self) -> None:
        assert axis([5.0], 0, 10).place(5.0) == pytest.approx(5)

    @given(st.lists(st.floats(-1000, 1000), min_size=1, max_size=8))
    def test_everything_lies_on_it(self, values: list[float]) -> None:
        found = axis(values, 10, 110)
        assert all(10 - 1e-6 <= found.place(value) <= 110 + 1e-6 for value in values)
        assert 2 <= len(found.ticks) <= 8
        steps = np.diff(found.ticks)
        assert np.allclose(steps, steps[0])


class TestDotChart:
    def test_its_size_follows_its_content(self) -> None:
        one = dot_chart(["a"], [Panel("p", "u", [[1.0]])])
        more = dot_chart(["a"] * 3, [Panel("p", "u", [[1.0]] * 3), Panel("q", "u", [[]] * 3)])
        assert more.height == one.height + 2 * LINE
        assert more.width == one.width + PANEL + GAP
        assert one.getpixel((0, 0)) == BACKGROUND

    def test_every_mean_has_its_place(self) -> None:
        """One seed a row: dots alone. From 10 to 20 the axis is 460 - 28 pixels long."""
        picture = dot_chart(["a", "b", "c"], [Panel("p", "u", [[10.0], [20.0], [15.0]])])
        left = panel_left(picture, 1) + 2 * RADIUS
        length = PANEL - 4 * RADIUS
        marks = places(picture, MEAN)
        for row, share in enumerate((0.0, 1.0, 0.5)):
            inside = (marks[:, 0] >= TOP + LINE * row) & (marks[:, 0] < TOP + LINE * (row + 1))
            assert marks[inside, 1].mean() == pytest.approx(left + share * length, abs=1)
        assert len(places(picture, SEED)) == 0

    def test_the_bar_is_one_deviation_to_either_side(self) -> None:
        """Seeds 10 and 20: mean 15, deviation 50^0.5 = 7.07; so 7.93 to 22.07 on an axis from 5 to 25."""
        picture = dot_chart(["a"], [Panel("p", "u", [[10.0, 20.0]])])
        left, length = panel_left(picture, 1) + 2 * RADIUS, PANEL - 4 * RADIUS
        marks = places(picture, MEAN)
        for found, value in ((marks[:, 1].min(), 7.93), (marks[:, 1].max(), 22.07)):
            assert found == pytest.approx(left + (value - 5) / 20 * length, abs=2)
        seeds = places(picture, SEED)
        low, high = (seeds[:, 1] < seeds[:, 1].mean()), (seeds[:, 1] > seeds[:, 1].mean())
        assert seeds[low, 1].mean() == pytest.approx(left + length / 4, abs=1)
        assert seeds[high, 1].mean() == pytest.approx(left + 3 * length / 4, abs=1)
        assert seeds[:, 0].min() > marks[:, 0].mean()

    def test_panels_have_their_own_axes(self) -> None:
        picture = dot_chart(["a"], [Panel("p", "u", [[1.0]]), Panel("q", "u", [[5000.0]])])
        marks = places(picture, MEAN)[:, 1]
        middle = picture.width - GAP - PANEL - GAP / 2
        shift = marks[marks > middle].mean() - marks[marks < middle].mean()
        assert shift == pytest.approx(PANEL + GAP, abs=0.5)

    def test_a_row_without_a_result_says_so(self) -> None:
        rows = ["a", "b"]
        empty = dot_chart(rows, [Panel("p", "u", [[1.0], []])])
        assert places(empty, MEAN)[:, 0].max() < TOP + LINE
        second = np.asarray(empty)[TOP + LINE + 2 : TOP + 2 * LINE - 2, -PANEL:]
        assert (second != BACKGROUND).any(-1).sum() > 100

    def test_nothing_at_all(self) -> None:
        assert len(places(dot_chart(["a"], [Panel("p", "u", [[]])]), MEAN)) == 0

    def test_a_long_note_fits(self) -> None:
        panel = Panel("p", "u", [[1.0]])
        picture = dot_chart(["a"], [panel], note="words " * 60)
        assert picture.width > dot_chart(["a"], [panel]).width
        ink = np.argwhere((np.asarray(picture)[-30:] != BACKGROUND).any(-1))
        assert ink[:, 1].max() < picture.width - GAP + 2

    def test_mistakes(self) -> None:
        with pytest.raises(AssertionError, match="something to draw"):
            dot_chart([], [Panel("p", "u", [])])
        with pytest.raises(AssertionError, match="values for every row"):
            dot_chart(["a", "b"], [Panel("p", "u", [[1.0]])])
