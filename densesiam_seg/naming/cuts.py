"""Another number of clusters: a cut of a tree of merges, as an edit that can be undone.

Axes: K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densesiam_seg.clustering.merging import Groups, Ids, cut
from densesiam_seg.config import FINE_CLUSTERS
from densesiam_seg.errors import UsageError
from densesiam_seg.naming.clusters import CLUSTERS, Cluster, ClusterFile, read_clusters
from densesiam_seg.naming.edits import regroup


def cut_to(folder: Path, count: int, tree: Ids) -> ClusterFile:
    """Show `count` clusters of a model directory, merged by the tree in place of all earlier merges.

    Raises as `edits.rename`.
    """
    found = read_clusters(folder / CLUSTERS, len(tree) + 1)
    require_count(count, len(found.clusters))
    groups = cut(tree, count)
    return regroup(folder, f"cut -k {count}", shown_as(found.clusters, groups))


def require_count(count: int, learned: int) -> None:
    """Refuse a number of clusters that no cut of so many `learned` ones has. Raises UsageError."""
    if count > learned:
        raise UsageError(
            f"-k {count}: the model learned {learned} clusters, and a cut only merges them; for more train again with "
            f"--clusters auto (which learns {FINE_CLUSTERS}) or -k, or give predict --readout merge -k {count}"
        )
    if count < 1:
        raise UsageError(f"-k {count}: must be 1 to {learned}")


def shown_as(clusters: Sequence[Cluster], groups: Groups) -> list[int]:
    """The id (K,) that shows each cluster: its group's largest, or the largest of those that a person has named."""
    found = [each.id for each in clusters]
    for members in groups:
        root = max(members, key=lambda member: _rank(clusters[member]))
        for member in members:
            found[member] = root
    return found


def _rank(cluster: Cluster) -> tuple[bool, bool, float, int]:
    """Which of several clusters shows them all: the one with the highest rank, the first of equal ones."""
    named = cluster.named_by
    return named == "user", named is not None, cluster.share or 0.0, -cluster.id
