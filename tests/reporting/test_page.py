"""What the report says of clusters, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.reporting.page import cards_of, css_colour, page_file
from densesiam_seg.reporting.run_files import read_run
from densesiam_seg.reporting.survey import Survey

SHARES = np.array([[0.5, 0.499, 0.001, 0, 0], [0.7, 0.3, 0, 0, 0], [0.6, 0.4, 0, 0, 0]])
DOUBTS = np.zeros((5, 5))
DOUBTS[0] = [0, 0.06, 0.03, 0.01, 0]


def survey(**changes: Any) -> Survey:
    """Three images: clusters 0 and 1 in all of them, 2 hardly and in one, 3 and 4 in none."""
    found = Survey(
        ("a", "b", "c"), SHARES, np.full(3, 0.7), np.full(3, 0.2), np.zeros((3, 2), np.float32),
        np.array([0.9, 0.4, 0.6, 0, 0]), DOUBTS, [[]] * 5, [[]] * 5,
    )  # fmt: skip
    return replace(found, **changes)


def test_the_largest_first_with_flags(segmenter: Segmenter) -> None:
    cards = cards_of(segmenter, survey())
    assert [card.cluster.id for card in cards] == [0, 1, 2, 3, 4]
    assert [card.share for card in cards[:2]] == pytest.approx([0.6, 0.399666666])
    assert [card.occurrence for card in cards] == [1, 1, 0, 0, 0]
    assert [card.certainty for card in cards[:3]] == [0.9, 0.4, 0.6]
    flags = [(), ("unsure",), ("rare", "in one image only"), ("empty",), ("empty",)]
    assert [card.flags for card in cards] == flags


def test_rare_is_a_tenth_of_an_equal_share(segmenter: Segmenter) -> None:
    """Of five clusters that is 2 %."""
    shares = np.tile([0.651, 0.3, 0.021, 0.019, 0.009], (3, 1))
    cards = cards_of(segmenter, survey(shares=shares, sureness=np.ones(5)))
    assert [card.flags for card in cards] == [(), (), (), ("rare",), ("rare",)]


def test_what_a_cluster_is_confused_with(segmenter: Segmenter) -> None:
    first, second, *_ = cards_of(segmenter, survey())
    assert [each.cluster.id for each in first.neighbours] == [1, 2, 3]
    assert [each.share for each in first.neighbours] == pytest.approx([0.6, 0.3, 0.1])
    assert second.neighbours == ()


def test_merged_clusters_are_one_card(segmenter: Segmenter) -> None:
    clusters = [
        replace(each, merged_into=1 if each.id in (3, 4) else None) for each in segmenter.clusters
    ]
    merged = Segmenter(segmenter.network, segmenter.card, clusters, device="cpu")
    cards = cards_of(merged, survey())
    assert [card.cluster.id for card in cards] == [0, 1, 2]
    assert [[each.id for each in card.members] for card in cards] == [[], [3, 4], []]
    assert cards[1].to_dict()["members"] == [3, 4]


def test_colours() -> None:
    assert css_colour((1, 171, 255)) == "#01abff"


def test_where_the_page_goes(run: Path, model_folder: Path, tmp_path: Path) -> None:
    found = read_run(run)
    assert page_file(found, None) == run / "report" / "index.html"
    assert page_file(found, tmp_path / "there") == tmp_path / "there" / "index.html"
    assert page_file(found, tmp_path / "a.HTML") == tmp_path / "a.HTML"
    (tmp_path / "b.html").mkdir()
    assert page_file(found, tmp_path / "b.html") == tmp_path / "b.html" / "index.html"
    assert page_file(read_run(model_folder), None) == Path("report/index.html")
