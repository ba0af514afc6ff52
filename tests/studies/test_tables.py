"""Means, deviations, the best of a column in bold, and Markdown that stays a table; runs → table and chart."""

from __future__ import annotations

import numpy as np
import pytest

from densesiam_seg.studies.ablations import Row
from densesiam_seg.studies.runs import Cost, ProbeScore, RunResult
from densesiam_seg.studies.tables import (
    COLUMNS,
    Cell,
    Column,
    Table,
    score_chart,
    score_table,
    spread,
    standing_notes,
)

ROWS = (Row("first", {}, (50.0, 80.0, 60.0)), Row("second", {}))


def table(*cells: tuple[Cell, Cell], names: tuple[str, ...] = ("a", "b", "c")) -> Table:
    columns = (Column("score", "score"), Column("time", "time s", "lowest", 0))
    return Table("T", columns, names[: len(cells)], cells, ("one", "two"))


def cells_of(table: Table) -> dict[str, list[str]]:
    """The cells by the name of the row, without their padding."""
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


class TestSpread:
    def test_the_deviation_is_that_of_a_sample(self) -> None:
        """Of 1, 2, 6: mean 3, squares 4 + 1 + 9 over n - 1 = 2."""
        found = spread([1.0, 2.0, 6.0])
        assert found is not None
        assert found.mean == 3
        assert found.deviation == pytest.approx(7**0.5)
        assert found.shown(2) == "3.00 ± 2.65"

    def test_one_number_has_none(self) -> None:
        found = spread([1.5])
        assert found is not None
        assert found.shown(1) == "1.5 ± -"
        assert spread([]) is None


class TestMarkdown:
    def test_the_whole(self) -> None:
        found = table((spread([1.0, 3.0]), 10.4), (spread([4.0]), 9.6))
        assert found.markdown().splitlines() == [
            "# T",
            "",
            "| row |        score | time s |",
            "| --- | -----------: | -----: |",
            "| a   |  2.00 ± 1.41 |     10 |",
            "| b   | **4.00 ± -** | **10** |",
            "",
            "- one",
            "- two",
        ]

    @pytest.mark.parametrize(
        ("cells", "expected"),
        [
            # The highest score and the lowest time.
            (
                ((1.0, 3.0), (2.0, 5.0), (0.5, 4.0)),
                [["1.00", "**3**"], ["**2.00**", "5"], ["0.50", "4"]],
            ),
            # Equal ones are all the best.
            (((1.0, None), (1.0, None)), [["**1.00**", "-"], ["**1.00**", "-"]]),
            # Alone nothing is the best.
            (((1.0, None), ("failed", 0.0)), [["1.00", "-"], ["failed", "0"]]),
        ],
    )
    def test_the_best_is_bold(
        self, cells: tuple[tuple[Cell, Cell], ...], expected: list[list[str]]
    ) -> None:
        assert list(cells_of(table(*cells)).values()) == expected

    def test_texts_cannot_break_the_table(self) -> None:
        text = table(("bad | text\nof two lines", 1.0), names=("a|b",)).markdown()
        assert r"| a\|b | bad \| text of two lines |" in text

    def test_json(self) -> None:
        found = table((spread([1.0, 3.0]), 2.0), ("failed", None)).to_dict()
        values = {"mean": 2.0, "deviation": pytest.approx(2**0.5), "values": (1.0, 3.0)}
        assert found == {
            "title": "T",
            "rows": [
                {"row": "a", "score": values, "time": 2.0},
                {"row": "b", "score": "failed", "time": None},
            ],
            "notes": ["one", "two"],
        }


def result(row: str, seed: int, value: float | None = None) -> RunResult:
    """Linear `value`, k-means half of it, or a failure."""
    if value is None:
        return RunResult(row, seed, "lost", None, None, Cost(5, 9), Cost(), {})
    linear, kmeans = (
        ProbeScore(each, each + 40, {"a": each, "b": None}, "picie: 32", "probe", 2)
        for each in (value, value / 2)
    )
    costs = (Cost(10 + seed, 20 + seed), Cost(1, 2))
    return RunResult(row, seed, None, linear, kmeans, *costs, {"steps": 30, "epochs": 3})


class TestScores:
    def cells(self, *results: RunResult) -> dict[str, list[str]]:
        found = cells_of(score_table("T", ROWS, results, []))
        return {name: [cell.replace("**", "") for cell in row] for name, row in found.items()}

    def test_means_beside_the_papers_figures(self) -> None:
        """Linear 20 and 22: mean 21, deviation 2^0.5; k-means half of it. Training 20 and 21 processor seconds."""
        first = [result("first", 0, 20.0), result("first", 1, 22.0)]
        found = self.cells(*first, result("second", 0, 30.0), result("second", 1, 30.0))
        assert found == {
            "first": [
                "21.00 ± 1.41", "61.00 ± 1.41", "10.50 ± 0.71", "50.50 ± 0.71", "20 ± 1", "50.0", "80.0", "60.0",
            ],
            "second": [
                "30.00 ± 0.00", "70.00 ± 0.00", "15.00 ± 0.00", "55.00 ± 0.00", "20 ± 1", "-", "-", "-",
            ],
        }  # fmt: skip
        assert len({column.key for column in COLUMNS}) == len(COLUMNS)

    def test_a_seed_that_failed_is_told(self) -> None:
        results = [result("first", 0, 20.0), result("first", 1), result("second", 0, 30.0)]
        results.append(result("second", 1, 32.0))
        found = self.cells(*results)
        assert found["first (1 of 2 seeds)"][0] == "20.00 ± -"
        assert found["second"][0] == "31.00 ± 1.41"
        notes = score_table("T", ROWS, results, ["last"]).notes
        assert notes == ("failed: first, seed 1: lost", "last")

    def test_a_row_that_failed_says_why(self) -> None:
        found = self.cells(result("first", 0), result("second", 0, 30.0))
        assert found["first (0 of 1 seeds)"] == [
            "failed: lost", "-", "-", "-", "-", "50.0", "80.0", "60.0",
        ]  # fmt: skip

    def test_before_the_first_run(self) -> None:
        assert self.cells()["first"][:5] == ["-"] * 5

    def test_notes_say_what_all_cost(self) -> None:
        """Two runs of 20 and 21 s training, 2 s probing each; wall 10 + 11 and 1 + 1."""
        notes = standing_notes([result("first", 0, 20.0), result("first", 1, 22.0)], 12)
        assert notes[0] == "budget per run: steps 30, epochs 3"
        assert notes[1].startswith("seeds: 0, 1;")
        assert notes[1].endswith("2 of 12 runs finished")
        assert (
            "total cost: 45 s of processor time, 23 s of wall time (pre-training 41 s of processor time, 21 s of wall "
            "time; probes 4 s of processor time, 2 s of wall time)"
        ) in notes

    def test_the_chart_has_a_mean_for_every_row_that_has_scores(self) -> None:
        results = [result("first", 0, 20.0), result("second", 0)]
        figure = score_chart(ROWS, results, "note")
        for axes, value in zip(figure.axes, (20, 10), strict=True):
            assert [np.ravel(line.get_xydata()).tolist() for line in axes.lines] == [[value, 0]]
            assert [text.get_text() for text in axes.texts] == ["no result"]
