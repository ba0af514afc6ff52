"""Another number of clusters: which cluster shows a group, and that names and the way back survive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from densesiam_seg.errors import UsageError
from densesiam_seg.naming.clusters import (
    ClusterFile,
    grouping,
    name_clusters,
    read_clusters,
    write_clusters,
)
from densesiam_seg.naming.cuts import cut_to, shown_as
from densesiam_seg.naming.edits import merge, rename, undo

TREE = np.array([[0, 1], [4, 5], [3, 6], [2, 7], [8, 9]])
"""Of six clusters: 0 with 1, 4 with 5, 3 with 0 and 1, 2 with 4 and 5, all."""
SHARES = [0.1, 0.2, 0.3, 0.2, 0.15, 0.05]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clusters(tmp_path / "clusters.json", ClusterFile(tuple(name_clusters(6, SHARES))))
    return tmp_path


def shown(folder: Path) -> list[int]:
    return [*map(int, grouping(read_clusters(folder / "clusters.json").clusters))]


def test_the_largest_shows_a_group(folder: Path) -> None:
    assert cut_to(folder, 4, TREE).history[-1]["edit"] == "cut -k 4"
    assert shown(folder) == [1, 1, 2, 3, 4, 4]
    cut_to(folder, 2, TREE)  # of 1 and 3, which are equally large, the first
    assert shown(folder) == [1, 1, 2, 1, 2, 2]
    cut_to(folder, 1, TREE)
    assert shown(folder) == [2] * 6


def test_one_that_a_person_named_shows_it_instead(folder: Path) -> None:
    rename(folder, {"0": "road", "5": "sky", "4": "cloud"})
    found = cut_to(folder, 2, TREE)
    assert shown(folder) == [0, 0, 4, 0, 4, 4]
    assert [each.name for each in found.clusters if each.left] == ["road", "cloud"]
    assert found.clusters[5].name == "sky", "it comes back with more clusters"
    cut_to(folder, 5, TREE)
    assert shown(folder) == [0, 0, 2, 3, 4, 5]


def test_named_from_labels_counts_less_than_by_a_person() -> None:
    clusters = name_clusters(3, [0.5, 0.3, 0.2])
    clusters[1] = replace(clusters[1], named_by="labels")
    assert shown_as(clusters, ((0, 1), (2,))) == [1, 1, 2]
    clusters[2] = replace(clusters[2], named_by="user")
    assert shown_as(clusters, ((0, 1, 2),)) == [2, 2, 2]
    assert shown_as(name_clusters(2), ((0, 1),)) == [0, 0], "without shares the first"


def test_it_takes_the_place_of_earlier_merges_and_is_undone(folder: Path) -> None:
    merge(folder, ["2", "3"])
    before = read_clusters(folder / "clusters.json").clusters
    cut_to(folder, 5, TREE)
    assert shown(folder) == [1, 1, 2, 3, 4, 5]
    words, found = undo(folder)
    assert words == "cut -k 5" and found.clusters == before
    cut_to(folder, 6, TREE)
    assert shown(folder) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("count", "told"), [(7, "--clusters auto"), (0, "1 to 6"), (-1, "1 to 6")])
def test_no_such_number(folder: Path, count: int, told: str) -> None:
    before = (folder / "clusters.json").read_bytes()
    with pytest.raises(UsageError, match=told):
        cut_to(folder, count, TREE)
    assert (folder / "clusters.json").read_bytes() == before
