"""Edits of clusters: names, merges and their undoing, also by several programs at once."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from densesiam_seg.errors import BusyError, ModelError, UsageError
from densesiam_seg.io.lock import run_lock
from densesiam_seg.naming import edits
from densesiam_seg.naming.clusters import (
    ClusterFile,
    grouping,
    name_clusters,
    read_clusters,
    write_clusters,
)
from densesiam_seg.naming.edits import merge, regroup, rename, suggest, undo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clusters(tmp_path / "clusters.json", ClusterFile(tuple(name_clusters(6))))
    return tmp_path


def names(folder: Path) -> list[str]:
    return [each.name for each in read_clusters(folder / "clusters.json").clusters]


def groups(folder: Path) -> list[int]:
    return [*map(int, grouping(read_clusters(folder / "clusters.json").clusters))]


class TestRename:
    def test_by_id_and_by_name(self, folder: Path) -> None:
        rename(folder, {"5": " the  sky ", "cluster_03": "a road, wet"})
        found = rename(folder, {"a road, wet": "road"})
        assert [each.name for each in found.clusters[3:]] == ["road", "cluster_04", "the sky"]
        assert [each.named_by for each in found.clusters[3:]] == ["user", None, "user"]
        assert found.revision == 2 == len(found.history)

    def test_names_may_be_exchanged(self, folder: Path) -> None:
        rename(folder, {"0": "a", "1": "b"})
        rename(folder, {"0": "b", "1": "a"})
        assert names(folder)[:2] == ["b", "a"]

    @pytest.mark.parametrize("name", ["", " ", "7", "x" * 101, "a\x00b", "cluster_01"])
    def test_refused_ones_change_nothing(self, folder: Path, name: str) -> None:
        before = (folder / "clusters.json").read_bytes()
        with pytest.raises(UsageError):
            rename(folder, {"2": "fine", "0": name})
        assert (folder / "clusters.json").read_bytes() == before

    def test_two_names_for_one_are_refused(self, folder: Path) -> None:
        merge(folder, ["2", "3"])
        for twice in ({"2": "a", "cluster_02": "b"}, {"2": "a", "3": "b"}):
            with pytest.raises(UsageError, match="twice"):
                rename(folder, twice)

    def test_the_present_name_is_no_edit(self, folder: Path) -> None:
        rename(folder, {"0": "sky"})
        assert rename(folder, {"0": "sky"}).revision == 1


class TestMerge:
    def test_the_first_shows_all(self, folder: Path) -> None:
        merge(folder, ["4", "1"])
        merge(folder, ["3", "4", "cluster_00"], "road")
        assert groups(folder) == [3, 3, 2, 3, 3, 5]
        assert names(folder)[3] == "road"

    def test_a_merged_one_means_what_shows_it(self, folder: Path) -> None:
        merge(folder, ["1", "2"])
        merge(folder, ["5", "2"])
        assert groups(folder) == [0, 5, 5, 3, 4, 5]

    def test_a_name_given_before_is_kept(self, folder: Path) -> None:
        rename(folder, {"2": "sky"})
        assert merge(folder, ["1", "2"]).clusters[1].name == "sky"
        rename(folder, {"3": "road", "4": "way"})
        assert merge(folder, ["3", "4"]).clusters[3].name == "road"

    @pytest.mark.parametrize("named", [["1"], ["1", "1"], ["1", "9"], []])
    def test_refused(self, folder: Path, named: list[str]) -> None:
        with pytest.raises(UsageError):
            merge(folder, named)

    def test_parts_of_one_cluster_are_no_merge(self, folder: Path) -> None:
        merge(folder, ["1", "2"])
        with pytest.raises(UsageError):
            merge(folder, ["1", "2"])

    def test_the_name_of_another_is_refused(self, folder: Path) -> None:
        """The name of one of the merged is free."""
        rename(folder, {"5": "sky"})
        with pytest.raises(UsageError):
            merge(folder, ["1", "2"], "sky")
        assert merge(folder, ["1", "5"], "sky").clusters[1].name == "sky"


class TestUndo:
    def test_not_of_an_edit_that_was_not_seen(self, folder: Path) -> None:
        seen = rename(folder, {"0": "sky"}).revision
        rename(folder, {"1": "road"})
        with pytest.raises(BusyError, match="another program"):
            undo(folder, seen=seen)
        assert names(folder)[:2] == ["sky", "road"]
        assert undo(folder, seen=2)[0] == "rename 1=road"

    def test_each_edit_is_taken_back(self, folder: Path) -> None:
        states = [read_clusters(folder / "clusters.json").clusters]
        rename(folder, {"0": "sky"})
        states.append(read_clusters(folder / "clusters.json").clusters)
        merge(folder, ["1", "2", "0"])
        states.append(read_clusters(folder / "clusters.json").clusters)
        regroup(folder, "cut -k 2", [0, 0, 0, 3, 3, 3], {0: "a", 3: "b"}, "labels")
        assert groups(folder) == [0, 0, 0, 3, 3, 3]
        for words in ("cut -k 2", "merge 1 2 0", "rename 0=sky"):
            edit, found = undo(folder)
            assert edit == words and found.clusters == states.pop()
        with pytest.raises(UsageError):
            undo(folder)
        assert read_clusters(folder / "clusters.json").revision == 6

    @pytest.mark.parametrize(
        "entry",
        [
            "x",
            {"id": 0},
            {"id": 0, "name": 7, "colour": [1, 2, 3]},
            {"id": 0, "name": "a", "colour": [1, 2, 3], "merged_into": 6},
            {"id": 0, "name": "a", "colour": [1, 2, 3], "merged_into": 2},
        ],
    )
    def test_a_damaged_history(self, folder: Path, entry: object) -> None:
        history = ({"edit": "x", "before": [entry]},)
        merged = merge(folder, ["1", "2"]).clusters
        write_clusters(folder / "clusters.json", ClusterFile(merged, 1, history))
        with pytest.raises(ModelError, match="history is damaged"):
            undo(folder)
        assert read_clusters(folder / "clusters.json").clusters == merged


def test_no_name_is_shown_twice_after_merges_are_replaced(folder: Path) -> None:
    rename(folder, {"3": "road", "1": "sky"})
    merge(folder, ["5", "3"], "road")
    merge(folder, ["0", "1"])  # 0 takes on the name of 1
    assert names(folder) == ["sky", "sky", "cluster_02", "road", "cluster_04", "road"]
    found = regroup(folder, "cut", [0, 1, 2, 3, 4, 5])
    assert names(folder) == [
        *("sky", "cluster_01", "cluster_02"),
        *("cluster_03", "cluster_04", "road"),
    ]
    assert [each.named_by for each in found.clusters][::5] == ["user", "user"]
    assert found.clusters[3].named_by is None
    undo(folder)
    regroup(folder, "name", [0, 1, 2, 3, 4, 5], {4: "sky"}, "labels")
    assert names(folder)[0] == "cluster_00"
    assert names(folder)[4] == "sky"


def test_a_suggestion_is_kept_through_edits(folder: Path) -> None:
    suggest(folder, {"chosen": 4})
    rename(folder, {"0": "sky"})
    found = undo(folder)[1]
    assert found.suggestion == {"chosen": 4}


def _rename_often(folder: Path, cluster: int, times: int) -> None:
    for number in range(times):
        rename(folder, {str(cluster): f"name {cluster} {number}"})


def test_programs_that_edit_at_once_lose_nothing(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    programs = [context.Process(target=_rename_often, args=(folder, k, 25)) for k in range(3)]
    for program in programs:
        program.start()
    for program in programs:
        program.join()
        assert program.exitcode == 0
    found = read_clusters(folder / "clusters.json")
    assert found.revision == 75 == len(found.history)
    assert [each.name for each in found.clusters[:3]] == [f"name {k} 24" for k in range(3)]


def test_one_that_never_ends_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "WAIT_SECONDS", 0.05)
    with run_lock(folder), pytest.raises(BusyError):
        rename(folder, {"0": "sky"})
