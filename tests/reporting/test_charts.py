"""Charts: every line where its numbers are, and markup that fits into any page."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from pages import Page

from densesiam_seg.reporting.charts import (
    ACCENT,
    LINES,
    MANY,
    confusion_picture,
    health_chart,
    loss_chart,
    suggestion_chart,
)

HOSTILE = "\x1b[2J</text><script>$x^2$ and more"


def step(number: int, **losses: Any) -> dict[str, Any]:
    return {"record": "step", "step": number, "losses": losses}


def points(chart: str | None, colour: str) -> list[tuple[float, float]]:
    """The points of the longest line of a colour in the axes, in units of the picture; y grows upwards."""
    assert chart is not None
    paths = re.findall(rf'<path d="([^"]*)" clip-path[^>]*stroke: {colour};', chart)
    found = max((re.findall(r"[ML] ([\d.]+) ([\d.]+)", path) for path in paths), key=len)
    return [(float(x), -float(y)) for x, y in found]


def whole(*charts: str | None) -> Page:
    body = "".join(chart for chart in charts if chart)
    return Page(f'<!DOCTYPE html>\n<html lang="en"><body>{body}</body></html>')


def test_losses_are_drawn_in_proportion() -> None:
    steps = [
        step(1, pixel=4.0, total=8.0),
        step(2, pixel=2.0, total=4.0),
        step(4, pixel=3, total=6),
    ]
    (x0, y0), (x1, y1), (x2, y2) = points(loss_chart(steps, []), LINES[0])
    assert (x2 - x0) / (x1 - x0) == pytest.approx(3, rel=1e-3)
    assert (y2 - y1) / (y0 - y1) == pytest.approx(0.5, rel=1e-3)


def test_one_record_is_a_dot_and_none_is_no_chart() -> None:
    chart = loss_chart([step(1, pixel=0.3, total=0.3)], [])
    assert chart is not None and "<use" in chart and "pixel" in chart
    assert loss_chart([], []) is None and health_chart([]) is None
    assert loss_chart([{"record": "step", "step": 1}], []) is None
    assert loss_chart([step(1, pixel=None, total="x")], []) is None


def test_the_sum_of_one_loss_is_not_drawn_twice() -> None:
    assert "weighted sum" not in str(loss_chart([step(1, pixel=1, total=1)], []))
    assert "weighted sum" in str(loss_chart([step(1, pixel=1, region=1, total=2)], []))


def test_epochs_do_where_there_are_no_steps() -> None:
    epochs = [{"step": 3, "epoch": 0, "losses": {"pixel": 1.0}}]
    assert "pixel" in str(loss_chart([], epochs))


def test_health_is_in_shares() -> None:
    """Three of four clusters in use, then all four."""
    epochs = [
        {"epoch": 0, "agreement": 0.5, "clusters_in_use": 3, "entropy": 0.1, "shares": [0.25] * 4},
        {"epoch": 1, "agreement": 1.0, "clusters_in_use": 4, "entropy": 0.1, "shares": [0.25] * 4},
    ]
    chart = health_chart(epochs)
    agreement, used = points(chart, LINES[0]), points(chart, LINES[1])
    assert agreement[1] == used[1]
    assert used[1][1] - used[0][1] == pytest.approx(
        (agreement[1][1] - agreement[0][1]) / 2, rel=1e-3
    )
    assert "spread" not in str(chart)


def test_long_runs_are_thinned() -> None:
    steps = [step(number, pixel=1.0 if number > 5000 else 0.0) for number in range(10_000)]
    found = points(loss_chart(steps, []), LINES[0])
    assert len(found) <= MANY and found[-1][1] > found[0][1]


def test_a_suggestion_has_a_panel_for_each_score() -> None:
    suggestion = {
        "counts": [2, 3, 4],
        "scores": {"stability": [0, 1, 0.5], HOSTILE: [1, None, 3]},
        "chosen": 3,
    }
    chart = suggestion_chart(suggestion)
    (x0, y0), (x1, y1), (_, y2) = points(chart, ACCENT)
    assert y2 - y0 == pytest.approx((y1 - y0) / 2, rel=1e-3) and x1 > x0
    assert str(chart).count("clusters K") == 2
    whole(chart)


@pytest.mark.parametrize(
    "bad",
    [
        None, {}, {"counts": [], "scores": {}}, {"counts": 3, "scores": []}, {"counts": ["a"], "scores": {"s": ["b"]}},
        {"counts": [1, 2], "scores": {"s": [1]}}, {"counts": [1], "scores": {"s": [math.nan]}},
    ],
)  # fmt: skip
def test_a_suggestion_of_another_form_is_left_out(bad: Any) -> None:
    assert suggestion_chart(bad) is None


def test_the_confusion_matrix_in_the_order_asked_for() -> None:
    """Of the first class three quarters went to the second cluster, which stands first."""
    counts = np.array([[1, 3, 0], [0, 0, 5]])
    chart = confusion_picture(counts, ["sky", HOSTILE], ["a", "b", "c"], [1, 0, 2])
    page = whole(chart)
    assert [word for word in page.words if word in ("75", "25", "100")] == ["75", "25", "100"]
    assert [word for word in page.words if word in ("a", "b", "c")] == ["b", "a", "c"]
    assert r"\x1b[2J</text><script>$…" in page.text and "script" not in page.tags


def test_an_empty_class_and_a_single_cluster() -> None:
    whole(confusion_picture(np.array([[0]]), ["a"], ["b"], [0]))


def test_two_charts_share_no_identifier_and_use_the_colours_of_the_page() -> None:
    """`Page` refuses an identifier that comes twice."""
    chart = loss_chart([step(1, pixel=1.0), step(2, pixel=2.0)], [])
    again = loss_chart([step(1, pixel=1.0), step(2, pixel=2.0)], [])
    page = whole(chart, again)
    assert page.requests == [] and len(page.ids) > 2 and page.tags.count("svg") == 2
    assert chart is not None and "var(--ink)" in chart and "#010101" not in chart
    assert not re.search(r"xmlns|metadata|<style|<!--|font-family", chart)
