"""Two models on the same images: pairs and differences worked out by hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import read_page

from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.reporting.comparing import (
    ALONE,
    Compared,
    Pair,
    compare_events,
    compared,
    joint_of,
    matched_colours,
    pairs_of,
    write_comparison,
)


def other_names(segmenter: Segmenter, merged: dict[int, int] | None = None) -> Segmenter:
    """The same model with names of its own, and some clusters merged."""
    into = merged or {}
    clusters = [
        replace(each, name=f"<i>other {each.id}", merged_into=into.get(each.id))
        for each in segmenter.clusters
    ]
    return Segmenter(segmenter.network, segmenter.card, clusters, device="cpu", precision="fp32")


def test_the_joint_histogram() -> None:
    first = np.array([[0, 0, 1], [1, 1, 0]], np.uint8)
    second = np.array([[2, 2, 0], [0, 1, 0]], np.uint8)
    assert joint_of(first, second, 2, 3).tolist() == [[1, 0, 2], [2, 1, 0]]


def test_pairs_have_most_pixels_in_common() -> None:
    """Taking the largest cell first (9) would leave 1 for the other; 8 + 7 is more."""
    joint = np.array([[9, 8], [7, 1]])
    assert pairs_of(joint) == [(0, 1), (1, 0)]
    assert pairs_of(joint.T) == [(0, 1), (1, 0)]
    assert sorted(pairs_of(np.array([[5, 0], [0, 4], [1, 3]]))) == [(0, 0), (1, 1)]
    assert sorted(pairs_of(np.array([[0, 5], [0, 0], [4, 0]]))) == [(0, 1), (2, 0)]
    assert pairs_of(np.array([[5, 0], [4, 0]])) == [(0, 0)], "a pair without a pixel is none"


def test_overlaps_and_images(segmenter: Segmenter) -> None:
    """Image a: 6 of 10 pixels agree (0 with 1), image b: all 10 (2 with 3)."""
    one, two = np.zeros((5, 5), np.int64), np.zeros((5, 5), np.int64)
    one[0, 1], one[0, 4] = 6, 4
    two[2, 3] = 10
    found = compared(segmenter, other_names(segmenter), [("a", one), ("b", two)])
    assert [(pair.first.id, pair.second.id) for pair in found.pairs] == [(2, 3), (0, 1)]
    assert [pair.iou for pair in found.pairs] == [1, 0.6]
    assert [pair.share for pair in found.pairs] == [0.5, 0.3]
    assert [(each.image, each.agreement) for each in found.differences] == [("a", 0.6), ("b", 1)]
    assert found.agreement == 0.8
    assert found.only_first == () and [each.id for each in found.only_second] == [4]
    entropy = -(0.3 * np.log(0.3) + 0.2 * np.log(0.2) + 0.5 * np.log(0.5))
    assert found.information == pytest.approx(np.log(2) / np.sqrt(np.log(2) * entropy))


def ended(first: Segmenter, second: Segmenter, sources: list[str]) -> Compared:
    *_, last = compare_events(first, second, sources)
    assert isinstance(last, Compared)
    return last


def test_a_model_agrees_with_itself(segmenter: Segmenter, paths: list[str]) -> None:
    found = ended(segmenter, other_names(segmenter), paths)
    assert found.agreement == 1 and found.information == pytest.approx(1)
    assert all(pair.first.id == pair.second.id and pair.iou == 1 for pair in found.pairs)
    assert sum(pair.share for pair in found.pairs) == pytest.approx(1)
    assert {each.image for each in found.differences} == set(paths)


def test_merged_clusters_differ_where_they_are(segmenter: Segmenter, paths: list[str]) -> None:
    found = ended(segmenter, other_names(segmenter, {1: 0}), paths)
    masks = [segmenter.predict(path) for path in paths]
    share = np.mean([[(mask == k).mean() for k in range(5)] for mask in masks], axis=0)
    assert found.agreement == pytest.approx(1 - min(share[0], share[1]), abs=0.01)
    assert [each.id for each in found.only_first] == [0 if share[0] < share[1] else 1]


def test_bad_images(segmenter: Segmenter, paths: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"junk")
    found = ended(segmenter, segmenter, [str(bad), paths[0]])
    assert [each.path for each in found.failed] == [str(bad)] and len(found.differences) == 1
    with pytest.raises(ImageError, match="bad"):
        list(compare_events(segmenter, segmenter, [str(bad)]))
    with pytest.raises(InputError, match="none of the 2"):
        list(compare_events(segmenter, segmenter, [str(bad), str(bad)]))


def test_clusters_of_a_pair_have_one_colour(segmenter: Segmenter) -> None:
    first, other = segmenter.clusters[3], segmenter.clusters[1]
    colours = matched_colours([Pair(first, other, 1.0, 0.5)], 3)
    assert colours == [ALONE, first.colour, ALONE]


def test_the_page(segmenter: Segmenter, paths: list[str], tmp_path: Path) -> None:
    hostile = tmp_path / "<img src=x onerror=alert(1)>.png"
    shutil.copy(paths[1], hostile)
    other = other_names(segmenter, {1: 0})
    found = ended(segmenter, other, [*paths[:2], str(hostile)])
    write_comparison(tmp_path / "new" / "page.html", ("a", "<b>b"), segmenter, other, found)
    page = read_page(tmp_path / "new" / "page.html")
    assert page.tags.count("img") == 9 and not {"i", "b"} & set(page.tags)
    assert hostile.name in page.text and "<i>other 0" in page.text
    assert page.tags.count("tr") == 1 + len(found.pairs)
    assert found.to_dict(2)["looked_at"] == 3 and len(found.to_dict(2)["images"]) == 2
