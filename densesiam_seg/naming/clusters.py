"""The clusters of a model and their file, `clusters.json`: names, colours, shares, merges, and how they came to be.

A cluster keeps its id for ever. One that is merged into another is shown under the other's id, name and colour: masks
are made of all K clusters and then mapped by `grouping`, so that a merge is undone without a trace.

Axes: K clusters.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.clustering.merging import is_partition
from densesiam_seg.errors import ModelError, UsageError
from densesiam_seg.io.files import open_regular, replace_text, to_json
from densesiam_seg.pictures.masks import Colour, palette

CLUSTERS = "clusters.json"
MAX_BYTES = 1 << 23
"""Of the file; 4,096 clusters take 1 MB."""
MAX_HISTORY = 1 << 21
"""Characters of earlier states; the oldest are forgotten."""
_FORMAT = 2

NamedBy: TypeAlias = Literal["user", "labels"]
Entry: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """One learned cluster: its id in masks, a name (`cluster_00` until named), a colour, its share of the area."""

    id: int
    name: str
    colour: Colour
    share: float | None = None
    merged_into: int | None = None
    """The id under which it is shown; None: its own."""
    named_by: NamedBy | None = None
    """Where the name came from; None until it is named."""
    members: tuple[int, ...] | None = None
    """The over-clusters merged into it, where the read-out merges; free to edit, each must stay in one cluster."""

    @property
    def left(self) -> bool:
        """Whether masks have its id."""
        return self.merged_into is None

    def entry(self) -> Entry:
        """What `clusters.json` says of it."""
        found = asdict(self)
        if self.members is None:
            del found["members"]
        return found


@dataclass(frozen=True)
class ClusterFile:
    """The contents of a `clusters.json`."""

    clusters: tuple[Cluster, ...]
    revision: int = 0
    """Number of edits, undone ones too."""
    history: tuple[Mapping[str, Any], ...] = ()
    """For each edit that can be undone, the oldest first, its words (`edit`) and the entries that it changed, as they
    were (`before`)."""
    suggestion: Mapping[str, Any] | None = None
    """What `clusters suggest` found."""


def name_clusters(
    count: int,
    shares: Sequence[float] | None = None,
    members: Sequence[tuple[int, ...]] | None = None,
) -> list[Cluster]:
    """Clusters as they are before anyone names them."""
    digits = max(len(str(count - 1)), 2)
    return [
        Cluster(
            index,
            f"cluster_{index:0{digits}}",
            colour,
            shares[index] if shares else None,
            members=members[index] if members else None,
        )
        for index, colour in enumerate(palette(count))
    ]


def grouping(clusters: Sequence[Cluster]) -> NDArray[np.int64]:
    """The id (K,) under which each cluster is shown."""
    return np.array([each.id if each.left else each.merged_into for each in clusters], np.int64)


def left(clusters: Sequence[Cluster]) -> list[Cluster]:
    """The clusters that masks show, each with the share of all that are merged into it."""
    shares: dict[int, float] = {}
    for root, each in zip(grouping(clusters).tolist(), clusters, strict=True):
        if each.share is not None:
            shares[root] = shares.get(root, 0.0) + each.share
    return [replace(each, share=shares.get(each.id)) for each in clusters if each.left]


def is_flat(clusters: Sequence[Cluster]) -> bool:
    """Whether each cluster that is merged is so into one that is shown."""
    into = [each.merged_into for each in clusters if each.merged_into is not None]
    return all(root < len(clusters) and clusters[root].left for root in into)


def merged_into(clusters: Sequence[Cluster], root: int) -> list[Cluster]:
    """The clusters that are shown as `root`, itself left out."""
    return [each for each in clusters if each.merged_into == root]


def chosen(
    clusters: Sequence[Cluster], named: Iterable[str], *, what: str = "clusters"
) -> tuple[int, ...]:
    """The ids that are meant by ids and names, several with commas between them, once each, in their order.

    A cluster that is merged into another means the other. Raises UsageError, naming the option `what`, for one that is
    unknown, and for a name that several clusters have which are shown.
    """
    table = grouping(clusters)
    # A name is that of a cluster that is shown before it is that of one that is merged.
    ids = {each.name: each.id for each in sorted(clusters, key=lambda each: each.left)}
    ids |= {str(each.id): each.id for each in clusters}
    shown = Counter(each.name for each in clusters if each.left)
    # A name may hold a comma itself.
    parts = [part for text in named for part in ([text] if text in ids else text.split(","))]
    found = []
    for part in map(str.strip, parts):
        if part not in ids:
            raise UsageError(
                f"{what} {part}: no such cluster; give ids from 0 to {len(clusters) - 1} or names of the model's "
                f"{CLUSTERS}"
            )
        if shown[part] > 1 and part != str(ids[part]):
            raise UsageError(f"{what} {part}: several clusters have this name; give ids")
        found.append(int(table[ids[part]]))
    return tuple(dict.fromkeys(found))


def read_clusters(
    path: Path, count: int | None = None, *, merged: bool | None = None
) -> ClusterFile:
    """A `clusters.json`, each of its values checked.

    `count` is the number of clusters that it must list, `merged` whether each must name its members. A list of clusters
    alone, as early versions wrote it, is read too. Raises ModelError.
    """
    content = _read_json(path)
    if isinstance(content, list):
        content = {"format": _FORMAT, "clusters": content}
    try:
        if content.get("format") != _FORMAT:
            raise TypeError(f"format {_FORMAT} is wanted")
        clusters = tuple(_cluster(entry) for entry in content["clusters"])
        found = ClusterFile(
            clusters,
            content.get("revision", 0),
            tuple(content.get("history", ())),
            content.get("suggestion"),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a list of clusters ({error}); mend or retrain") from error
    wanted = len(clusters) if count is None else count
    ids = [cluster.id for cluster in clusters]
    if not wanted:
        raise ModelError(f"{path}: lists no clusters; mend or retrain")
    if ids != list(range(wanted)) or not all(map(_is_sound, clusters)):
        raise ModelError(
            f"{path}: must list the clusters 0 to {wanted - 1} with names, RGB colours and shares from 0 to 1; mend it"
        )
    if not is_flat(clusters):
        raise ModelError(f"{path}: a cluster is merged into one that is itself merged; mend it")
    _require_members(path, clusters, merged)
    if not _is_history(found):
        raise ModelError(f"{path}: its history is not what this program writes; delete it")
    return found


def write_clusters(path: Path, content: ClusterFile) -> None:
    """Write a `clusters.json`, a cluster on each line, whole or not at all. Raises OutputError."""
    entries = [to_json(each.entry()) for each in content.clusters]
    kept, room = [], MAX_HISTORY
    for edit in reversed([to_json(edit) for edit in content.history]):
        room -= len(edit)
        if room < 0:
            break
        kept.append(edit)
    text = (
        f'{{"format": {_FORMAT}, "revision": {content.revision},\n'
        f'"clusters": {_lines(entries)},\n'
        f'"history": {_lines(kept[::-1])},\n'
        f'"suggestion": {to_json(content.suggestion)}}}\n'
    )
    replace_text(path, text)


def _lines(values: Sequence[str]) -> str:
    """A JSON list with a line for each value."""
    return "[\n" + ",\n".join(values) + "\n]" if values else "[]"


def carried_over(clusters: Sequence[Cluster], path: Path, *, merges: bool) -> tuple[Cluster, ...]:
    """Clusters that were trained on, with the names and colours of an earlier file, and with its `merges`.

    As they are where there is no sound file of as many.
    """
    try:
        earlier = read_clusters(path, len(clusters)).clusters
    except ModelError:
        return tuple(clusters)
    return tuple(
        replace(
            new,
            name=old.name,
            colour=old.colour,
            named_by=old.named_by,
            merged_into=old.merged_into if merges else None,
        )
        for new, old in zip(clusters, earlier, strict=True)
    )


def cluster_of(entry: Any) -> Cluster:
    """A cluster of its entry in `clusters.json`. Raises TypeError or ModelError for one that cannot be."""
    found = _cluster(entry)
    if not _is_sound(found):
        raise TypeError(f"cluster {found.id} is not sound")
    return found


def _cluster(entry: Mapping[str, Any]) -> Cluster:
    """Raises TypeError."""
    lists = {name: tuple(entry[name]) for name in ("colour", "members") if name in entry}
    return Cluster(**{**entry, **lists})


def _is_sound(cluster: Cluster) -> bool:
    """Whether each value is of its type and within its bounds."""
    share, into = cluster.share, cluster.merged_into
    return (
        type(cluster.id) is int
        and type(cluster.name) is str
        and len(cluster.colour) == 3
        and all(type(value) is int and 0 <= value <= 255 for value in cluster.colour)
        and (share is None or (type(share) in (int, float) and 0 <= share <= 1))
        and (into is None or (type(into) is int and into >= 0 and into != cluster.id))
        and cluster.named_by in (None, *get_args(NamedBy))
    )


def _require_members(path: Path, clusters: Sequence[Cluster], merged: bool | None) -> None:
    """Raises ModelError unless the clusters of a merge read-out, and only they, share out all over-clusters."""
    members = [cluster.members for cluster in clusters if cluster.members is not None]
    if merged is None:
        merged = bool(members)
    if members and not merged:
        raise ModelError(f"{path}: only a merge read-out's clusters have members; mend it")
    numbers = all(type(member) is int for group in members for member in group)
    if merged and not (numbers and len(members) == len(clusters) and is_partition(members)):
        raise ModelError(
            f"{path}: each over-cluster must be a member of one cluster, and each cluster have one; mend it"
        )


def _is_history(content: ClusterFile) -> bool:
    """Whether revision, history and suggestion are of their types; `edits.undo` looks into the history's entries."""
    return (
        type(content.revision) is int
        and content.revision >= 0
        and all(
            isinstance(edit, dict)
            and edit.keys() == {"edit", "before"}
            and type(edit["edit"]) is str
            and isinstance(edit["before"], list)
            for edit in content.history
        )
        and (content.suggestion is None or isinstance(content.suggestion, dict))
    )


def _read_json(path: Path) -> Any:
    try:
        with open_regular(path) as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ModelError(f"{path}: larger than any real one; give a model of this program")
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: cannot be read as JSON ({error}); give a sound model directory"
        ) from error
