"""`clusters.json`: what it says, what is refused, and which clusters a person means."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from densesiam_seg.errors import ModelError, UsageError
from densesiam_seg.naming.clusters import (
    Cluster,
    ClusterFile,
    carried_over,
    chosen,
    grouping,
    left,
    merged_into,
    name_clusters,
    read_clusters,
    write_clusters,
)
from densesiam_seg.pictures.masks import palette

RED = (255, 0, 0)
MERGED = (
    Cluster(0, "sky", RED, 0.5, named_by="user"),
    Cluster(1, "cluster_01", RED, 0.2, merged_into=3),
    Cluster(2, "tree", RED, None),
    Cluster(3, "road", RED, 0.1),
    Cluster(4, "tree", RED, 0.2, merged_into=3),
)
"""Of five clusters 1 and 4 are shown as 3."""


def test_unnamed_clusters_sort_like_ids() -> None:
    clusters = name_clusters(300)
    assert [cluster.id for cluster in clusters] == list(range(300))
    assert [cluster.colour for cluster in clusters] == palette(300)
    names = [cluster.name for cluster in clusters]
    assert names[7] == "cluster_007" and sorted(names) == names
    assert name_clusters(2)[1].name == "cluster_01"
    assert [cluster.share for cluster in name_clusters(2, [0.25, 0.75])] == [0.25, 0.75]


def test_what_is_left_of_merged_clusters() -> None:
    """Shares add up; one that is not known stays so."""
    assert [(each.id, each.share) for each in left(MERGED)] == [(0, 0.5), (2, None), (3, 0.5)]
    assert grouping(MERGED).tolist() == [0, 3, 2, 3, 3]
    assert [each.id for each in merged_into(MERGED, 3)] == [1, 4]
    assert grouping(name_clusters(3)).tolist() == [0, 1, 2]


def cluster(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["clusters"][1].update(changes)


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an object": (lambda c: c.pop("clusters"), "not a list"),
    "of another format": (lambda c: c.update(format=3), "not a list"),
    "in another order": (lambda c: c["clusters"].reverse(), "0 to 4"),
    "too few": (lambda c: c["clusters"].pop(), "0 to 4"),
    "without a colour": (lambda c: c["clusters"][1].pop("colour"), "not a list"),
    "with more": (cluster(x=1), "not a list"),
    "colour out of range": (cluster(colour=[0, 0, 256]), "RGB"),
    "share of more than all": (cluster(share=1.5), "shares from 0 to 1"),
    "share a word": (cluster(share="much"), "shares from 0 to 1"),
    "share NaN": (cluster(share=float("nan")), "shares from 0 to 1"),
    "name a number": (cluster(name=7), "names"),
    "colour a number": (cluster(colour=7), "not a list"),
    "colour of fractions": (cluster(colour=[0.5, 0, 0]), "RGB"),
    "colour too long": (cluster(colour=[1, 2, 3, 4]), "RGB"),
    "merged into itself": (cluster(merged_into=1), "mend"),
    "merged into nothing": (cluster(merged_into=5), "merged into one"),
    "merged into a merged one": (cluster(merged_into=4), "merged into one"),
    "merged into a word": (cluster(merged_into="road"), "mend"),
    "named by a stranger": (cluster(named_by="x"), "mend"),
    "members of a head": (cluster(members=[1, 2]), "members"),
    "revision a word": (lambda c: c.update(revision="x"), "history"),
    "history a number": (lambda c: c.update(history=7), "not a list"),
    "history of words": (lambda c: c.update(history=["x"]), "history"),
    "suggestion a word": (lambda c: c.update(suggestion="x"), "history"),
}


class TestFile:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "clusters.json"

    def test_what_is_written_is_read(self, path: Path) -> None:
        """With each cluster on a line of its own, so that people can edit the file."""
        clusters = (replace(MERGED[0], name='a "quote"\n木[/red]'), *MERGED[1:])
        edit = {"edit": "rename 0=sky", "before": [MERGED[0].entry()]}
        written = ClusterFile(clusters, 7, (edit,), {"chosen": 3})
        write_clusters(path, written)
        assert read_clusters(path, 5) == replace(
            written, history=tuple(json.loads(json.dumps([edit])))
        )
        lines = path.read_text().splitlines()
        assert [json.loads(line.rstrip(","))["id"] for line in lines[2:7]] == [0, 1, 2, 3, 4]

    def test_a_list_alone_is_read(self, path: Path) -> None:
        path.write_text('[{"id": 0, "name": "a", "colour": [1, 2, 3], "share": 1}]')
        assert read_clusters(path, 1) == ClusterFile((Cluster(0, "a", (1, 2, 3), 1),))

    def test_none_at_all(self, path: Path) -> None:
        path.write_text("[]")
        with pytest.raises(ModelError, match="lists no clusters"):
            read_clusters(path)

    def test_the_oldest_edits_are_forgotten(self, path: Path) -> None:
        history = tuple({"edit": f"{n}" * 2**18, "before": []} for n in range(10))
        write_clusters(path, ClusterFile(MERGED, 10, history))
        kept = read_clusters(path).history
        assert [edit["edit"][0] for edit in kept] == list("3456789")

    @pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
    def test_damages(
        self, path: Path, damage: Callable[[dict[str, Any]], object], words: str
    ) -> None:
        write_clusters(path, ClusterFile(MERGED))
        content = json.loads(path.read_text())
        damage(content)
        path.write_text(json.dumps(content))
        with pytest.raises(ModelError, match=words) as caught:
            read_clusters(path, 5, merged=False)
        message = str(caught.value)
        assert str(path) in message and "; " in message and len(message.splitlines()) == 1


def test_what_is_carried_over_to_a_model_that_was_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "clusters.json"
    new = name_clusters(5, [0.2] * 5)
    assert carried_over(new, path, merges=True) == tuple(new)
    old = [replace(each, name=f"n{each.id}", colour=(1, 2, 3), share=0.0) for each in new]
    old[4] = replace(old[4], merged_into=1, named_by="user")
    write_clusters(path, ClusterFile(tuple(old)))
    found = carried_over(new, path, merges=True)
    assert found == tuple(replace(each, share=0.2) for each in old)
    assert carried_over(new, path, merges=False)[4] == replace(found[4], merged_into=None)
    assert carried_over(new[:3], path, merges=True) == tuple(new[:3])


class TestChosen:
    CLUSTERS = tuple(
        replace(cluster, name=name)
        for cluster, name in zip(
            name_clusters(5), ("sky", "a road, wet", "3", "tree", "sky 2"), strict=True
        )
    )

    @pytest.mark.parametrize(
        ("named", "ids"),
        [
            ([], ()),
            (["3", "0"], (3, 0)),
            (["3,0"], (3, 0)),
            (["sky", "tree"], (0, 3)),
            (["sky 2 , tree,1"], (4, 3, 1)),
            (["a road, wet"], (1,)),
            (["1", "a road, wet", "1,1"], (1,)),
        ],
    )
    def test_ids_and_names(self, named: list[str], ids: tuple[int, ...]) -> None:
        """An id wins over a name that looks like one."""
        assert chosen(self.CLUSTERS, named) == ids

    @pytest.mark.parametrize("named", ["5", "", "1,", "Sky", "01"])
    def test_unknown_ones(self, named: str) -> None:
        with pytest.raises(UsageError, match=r"no such cluster; give ids from 0 to 4 or names"):
            chosen(self.CLUSTERS, [named])

    def test_a_name_that_several_show(self) -> None:
        twice = (*self.CLUSTERS[:4], replace(self.CLUSTERS[4], name="sky"))
        assert chosen(twice, ["0", "4"]) == (0, 4)
        with pytest.raises(UsageError, match="several clusters"):
            chosen(twice, ["sky"])

    def test_merged_ones_mean_what_shows_them(self) -> None:
        """A name that is left wins over the same name of a merged one."""
        assert chosen(MERGED, ["1", "road", "0"]) == (3, 0)
        assert chosen(MERGED, ["tree"]) == (2,)
        assert chosen(MERGED, ["cluster_01"]) == (3,)
