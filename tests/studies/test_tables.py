"""Means, deviations, the best of a column in bold, and Markdown that stays a table."""

from __future__ import annotations

import pytest

from densesiam_seg.studies.tables import Column, Spread, Table, spread

COLUMNS = (Column("score", "score"), Column("time", "time s", "lowest", 0))


def table(*cells: tuple[object, object], names: tuple[str, ...] = ("a", "b", "c")) -> Table:
    return Table("T", COLUMNS, names[: len(cells)], cells, ("one", "two"))  # type: ignore[arg-type]


def lines(found: Table) -> list[list[str]]:
    """The cells of the rows, without their padding."""
    rows = [line for line in found.markdown().splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


class TestSpread:
    def test_the_deviation_is_that_of_a_sample(self) -> None:
        """Of 1, 2, 6: mean 3, squares 4 + 1 + 9 over n - 1 = 2."""
        found = spread([1.0, 2.0, 6.0])
        assert found is not None
        assert (found.mean, found.values) == (3.0, (1.0, 2.0, 6.0))
        assert found.deviation == pytest.approx(7**0.5)
        assert found.shown(2) == "3.00 ± 2.65"

    def test_one_number_has_none(self) -> None:
        assert spread([1.5]) == Spread(1.5, None, (1.5,))
        assert Spread(1.5, None, (1.5,)).shown(1) == "1.5 ± -"

    def test_no_number(self) -> None:
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
        assert found.markdown().endswith("\n")

    def test_best_is_the_highest_score_and_the_lowest_time(self) -> None:
        found = lines(table((1.0, 3.0), (2.0, 5.0), (0.5, 4.0)))
        assert found == [["a", "1.00", "**3**"], ["b", "**2.00**", "5"], ["c", "0.50", "4"]]

    def test_equal_ones_are_all_the_best(self) -> None:
        assert lines(table((1.0, None), (1.0, None))) == [
            ["a", "**1.00**", "-"],
            ["b", "**1.00**", "-"],
        ]

    def test_alone_nothing_is_the_best(self) -> None:
        assert lines(table((1.0, 3.0))) == [["a", "1.00", "3"]]
        assert lines(table((1.0, None), ("failed", None))) == [
            ["a", "1.00", "-"],
            ["b", "failed", "-"],
        ]

    def test_texts_cannot_break_the_table(self) -> None:
        text = table(("bad | text\nof two lines", 1.0), names=("a|b",)).markdown()
        assert r"| a\|b | bad \| text of two lines |" in text

    def test_a_cell_too_few_is_a_mistake(self) -> None:
        with pytest.raises(AssertionError, match="a cell for every column"):
            Table("T", COLUMNS, ("a",), ((1.0,),), ()).markdown()


def test_json() -> None:
    found = table((spread([1.0, 3.0]), 2.0), ("failed", None)).to_dict()
    assert found == {
        "title": "T",
        "rows": [
            {
                "row": "a",
                "score": {"mean": 2.0, "deviation": pytest.approx(2**0.5), "values": (1.0, 3.0)},
                "time": 2.0,
            },
            {"row": "b", "score": "failed", "time": None},
        ],
        "notes": ["one", "two"],
    }
