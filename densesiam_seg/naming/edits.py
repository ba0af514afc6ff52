"""Edits of a model's clusters: names, merges, another number of clusters, and the way back.

Every edit holds the lock of the model's folder, reads `clusters.json` anew and replaces it whole, so that several
programs may edit at once. It keeps the entries that it changes, for `undo`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from densesiam_seg.errors import BusyError, ModelError, UsageError
from densesiam_seg.io.lock import run_lock
from densesiam_seg.naming.clusters import (
    CLUSTERS,
    Cluster,
    ClusterFile,
    NamedBy,
    chosen,
    cluster_of,
    is_flat,
    name_clusters,
    read_clusters,
    write_clusters,
)

LONGEST_NAME = 100
WAIT_SECONDS = 20.0
"""How long an edit waits for others of the same model."""


def rename(folder: Path, names: Mapping[str, str]) -> ClusterFile:
    """Give clusters, by their ids or present names, new names. Raises UsageError, ModelError and OutputError.

    `folder` is a model directory. Two clusters that are shown may not have one name: they would be one cluster to
    whoever reads it.
    """

    def renamed(found: Sequence[Cluster]) -> list[Cluster]:
        new: dict[int, str] = {}
        for old, name in names.items():
            # Each alone, since a present name may hold a comma.
            for root in chosen(found, [old], what="rename"):
                if root in new:
                    raise UsageError(
                        f"rename {old}={name}: cluster {root} is named twice; give one name"
                    )
                new[root] = _sound_name(name)
        return _renamed(found, new)

    return _edit(
        folder, "rename " + " ".join(f"{old}={new}" for old, new in names.items()), renamed
    )


def merge(folder: Path, named: Sequence[str], name: str | None = None) -> ClusterFile:
    """Show clusters, by their ids or names, as the first of them, under `name`. Raises as `rename`.

    Without `name` the first one keeps its own, or gets that of the first of them that has been named.
    """

    def merged(found: Sequence[Cluster]) -> list[Cluster]:
        roots = chosen(found, named, what="merge")
        if len(roots) < 2:
            raise UsageError(
                f"merge {' '.join(named)}: names a single cluster; give at least two that are shown apart"
            )
        first, *others = roots
        table = dict.fromkeys(others, first)
        result = [replace(each, merged_into=_into(each, table)) for each in found]
        if name is not None:
            return _renamed(result, {first: _sound_name(name)})
        if found[first].named_by is None:
            for other in others:
                if found[other].named_by is not None:
                    kept = {first: found[other].name}
                    return _named(result, kept, found[other].named_by)
        return result

    ending = "" if name is None else f" --as {name}"
    return _edit(folder, f"merge {' '.join(named)}{ending}", merged)


def regroup(
    folder: Path,
    what: str,
    groups: Sequence[int],
    names: Mapping[int, str] | None = None,
    named_by: NamedBy | None = None,
    **more: Mapping[str, object],
) -> ClusterFile:
    """Show each cluster as the one that `groups` (K) names, itself or another, in place of all earlier merges.

    `names` are those of the clusters that are shown. Of clusters that would be shown with one name those that are shown
    anew are unnamed: a merge may have passed on their name. `what` are the words of the edit in the history, and
    `suggestion=…` replaces that of the file. Raises as `rename`.
    """

    def regrouped(found: Sequence[Cluster]) -> list[Cluster]:
        assert len(groups) == len(found), (len(groups), len(found))
        assert all(groups[root] == root for root in groups), "flat"
        result = [
            replace(each, merged_into=None if root == each.id else root)
            for each, root in zip(found, groups, strict=True)
        ]
        named = _named(result, names or {}, named_by)
        return _apart(named, [each.id for each in found if each.left], names or {})

    return _edit(folder, what, regrouped, **more)


def suggest(folder: Path, suggestion: Mapping[str, object]) -> ClusterFile:
    """Keep what `clusters suggest` found; no edit, as nothing is shown in another way. Raises as `rename`."""
    with _editing(folder) as (path, found):
        result = replace(found, suggestion=suggestion)
        write_clusters(path, result)
        return result


def undo(folder: Path, *, seen: int | None = None) -> tuple[str, ClusterFile]:
    """Take the last edit back; returns its words too. Raises UsageError where there is none, else as `rename`.

    `seen` is the revision whose last edit is meant. BusyError is raised where others have edited since: the last edit
    is then theirs.
    """
    with _editing(folder) as (path, found):
        if seen not in (None, found.revision):
            raise BusyError(
                f"{path}: edited by another program since; look at the clusters and undo again"
            )
        if not found.history:
            raise UsageError(f"{path}: nothing to undo; no edit is left")
        *earlier, last = found.history
        try:
            before = {each.id: each for each in map(cluster_of, last["before"])}
            clusters = tuple(before.get(each.id, each) for each in found.clusters)
        except (AttributeError, TypeError) as error:
            raise ModelError(f"{path}: its history is damaged ({error}); delete it") from error
        if not is_flat(clusters):
            raise ModelError(f"{path}: its history is damaged (merges of merges); delete it")
        result = replace(
            found, clusters=clusters, revision=found.revision + 1, history=tuple(earlier)
        )
        write_clusters(path, result)
        return str(last["edit"]), result


def _edit(
    folder: Path,
    what: str,
    change: Callable[[Sequence[Cluster]], Sequence[Cluster]],
    **more: Mapping[str, object],
) -> ClusterFile:
    with _editing(folder) as (path, found):
        changed = change(found.clusters)
        before = [
            old.entry() for old, new in zip(found.clusters, changed, strict=True) if old != new
        ]
        if not before and not more:
            return found
        result = replace(
            found,
            clusters=tuple(changed),
            revision=found.revision + 1,
            history=(*found.history, {"edit": what, "before": before}),
            **more,
        )
        write_clusters(path, result)
        return result


@contextmanager
def _editing(folder: Path) -> Iterator[tuple[Path, ClusterFile]]:
    """The file of clusters and its contents, while no one else edits it. Raises BusyError after `WAIT_SECONDS`."""
    path = folder / CLUSTERS
    with run_lock(folder, wait=WAIT_SECONDS):
        yield path, read_clusters(path)


def _into(cluster: Cluster, table: Mapping[int, int]) -> int | None:
    """Where a cluster is merged after the roots in `table` were merged into others."""
    shown = cluster.id if cluster.merged_into is None else cluster.merged_into
    return table.get(shown, cluster.merged_into)


def _named(
    clusters: Sequence[Cluster], names: Mapping[int, str], named_by: NamedBy | None
) -> list[Cluster]:
    return [
        replace(each, name=names[each.id], named_by=named_by) if each.id in names else each
        for each in clusters
    ]


def _apart(
    clusters: Sequence[Cluster], before: Sequence[int], names: Mapping[int, str]
) -> list[Cluster]:
    """No two that are shown have one name: it stays with one in `names`, else with one that was shown `before`."""
    order = sorted(clusters, key=lambda each: (each.id not in names, each.id not in before))
    seen: set[str] = set()
    double = []
    for each in order:
        if each.left and each.name in seen:
            double.append(each.id)
        elif each.left:
            seen.add(each.name)
    unnamed = name_clusters(len(clusters))
    return _named(clusters, {each: unnamed[each].name for each in double}, None)


def _sound_name(name: str) -> str:
    """A name that stands on one line and is no id. Raises UsageError."""
    text = " ".join(name.split())
    if not text or len(text) > LONGEST_NAME or not text.isprintable() or text.isdecimal():
        raise UsageError(
            f"name {name!r}: must have 1 to {LONGEST_NAME} printable characters and not be a number; give another"
        )
    return text


def _renamed(clusters: Sequence[Cluster], names: Mapping[int, str]) -> list[Cluster]:
    """Clusters that a person names. Raises UsageError for a name that another one which is shown has."""
    result = _named(clusters, names, "user")
    owners: dict[str, int] = {}
    for each in sorted(result, key=lambda each: each.id in names):
        if each.left and each.id in names and each.name in owners:
            one = owners[each.name]
            raise UsageError(
                f"name {each.name}: is that of cluster {one} already; "
                f"to make them one give clusters merge RUN {one} {each.id}"
            )
        if each.left:
            owners[each.name] = each.id
    return result
