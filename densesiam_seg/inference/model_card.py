"""The files of a model directory, verified: `config.json`, `clusters.json`, and the digest of `model.safetensors`.

`config.json` begins with the SHA-256 of all that follows, and holds that of the tensors. `clusters.json` has
none: it is the user's to edit, and each of its values is checked. Nothing here needs torch: a refusal comes at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from densesiam_seg.backbones import plausible
from densesiam_seg.clustering.merging import is_partition
from densesiam_seg.config import largest_image_size
from densesiam_seg.errors import ModelError
from densesiam_seg.io.files import open_regular, replace_file
from densesiam_seg.io.sealed import read_sealed, seal, verify
from densesiam_seg.io.tensors import read_layout
from densesiam_seg.network.architecture import Architecture, Features
from densesiam_seg.pictures.masks import Colour, palette

Readout = Literal["head", "kmeans", "merge"]
Refine = Literal["none", "guided", "pamr"]

CONFIG = "config.json"
CLUSTERS = "clusters.json"
TENSORS = "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
_FORMAT = 2


@dataclass(frozen=True)
class Cluster:
    """One learned cluster: its id in masks, a name (`cluster_00` until named), a colour, its share of the area."""

    id: int
    name: str
    colour: Colour
    share: float | None = None
    members: tuple[int, ...] | None = None
    """The over-clusters merged into it, where the read-out merges; free to edit, each must stay in one cluster."""

    def entry(self) -> dict[str, Any]:
        """What `clusters.json` says of it."""
        found = asdict(self)
        if self.members is None:
            del found["members"]
        return found


@dataclass(frozen=True)
class ModelCard:
    """What a model directory's `config.json` says."""

    architecture: Architecture
    image_size: int
    readout: Readout = "head"
    clusters: int = 27
    """K of the read-out; equal to the head's unless the read-out is by centroids."""
    refine: Refine = "none"
    """The default filter for the edges of its masks."""
    bands: Sequence[int] | None = None
    """Of its images, from 1; None for the first three."""
    stretch: Sequence[float] | None = None
    """The values of its images that become 0 and 255, in the units of `Decoding`; None where files say it."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the training, for the user: command, version, images, steps, epochs, seed."""


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
            members[index] if members else None,
        )
        for index, colour in enumerate(palette(count))
    ]


def model_folder(path: Path) -> Path:
    """The model directory that a path names: itself, or a run's `model/`. Raises ModelError."""
    for folder in (path, path / "model"):
        if os.path.isfile(folder / CONFIG):  # noqa: PTH113 - `Path.is_file` raises for long names
            return folder
    if os.path.isdir(path / "checkpoints"):  # noqa: PTH112
        raise ModelError(
            f"{path}: this run has not finished; end it with the command that began it and --resume --out {path}"
        )
    raise ModelError(f"{path}: no model here (no {CONFIG}); give a run or model directory")


@dataclass(frozen=True)
class StoredModel:
    """A model directory whose files are as they were written, but for names and groups of clusters."""

    card: ModelCard
    clusters: list[Cluster]
    tensors: Path
    """A safetensors file with a sound header; its tensors are still to be compared with the card."""


def stored_model(path: Path) -> StoredModel:
    """The model that a run or model directory holds, verified without torch. Raises ModelError."""
    folder = model_folder(path)
    card, digest = _read_card(folder / CONFIG)
    clusters = _read_clusters(folder / CLUSTERS, card.clusters, merged=card.readout == "merge")
    tensors = folder / TENSORS
    verify(tensors, digest)
    read_layout(tensors)
    return StoredModel(card, clusters, tensors)


def write_card(path: Path, card: ModelCard, digest: str) -> None:
    """Write `config.json`; `digest` is the SHA-256 of the tensors' file. Raises OutputError."""
    content = {"format": _FORMAT, "files": {TENSORS: digest}, **asdict(card)}
    replace_file(path, seal(content))


def _read_card(path: Path) -> tuple[ModelCard, str]:
    """What a `config.json` says, and the tensors' digest. Raises ModelError for what no model of this program has."""
    content = read_sealed(path, MAX_CONFIG_BYTES)
    try:
        if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
            raise ValueError(f"format {_FORMAT} is wanted")
        digest = content.pop("files")[TENSORS]
        card = ModelCard(Architecture(**content.pop("architecture")), **content)
        if not _in_range(card):
            raise ValueError("a value is out of range")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: not a model of this program ({error}); retrain it or use the version that wrote it"
        ) from error
    return card, str(digest)


def _in_range(card: ModelCard) -> bool:
    """Whether each value is of its type and within its bounds."""
    network = card.architecture
    numbers = (
        (network.channels, 1),
        (network.clusters, 1),
        (network.over_clusters, 0),
        (card.clusters, 1),
        (card.image_size, 32),
    )
    return (
        all(type(number) is int and least <= number <= 4096 for number, least in numbers)
        and type(network.backbone) is str
        and plausible(network.backbone)
        and network.features in get_args(Features)
        and card.image_size <= largest_image_size(network.features)
        and type(network.image_head) is type(network.mixture) is bool
        and card.readout in get_args(Readout)
        and card.refine in get_args(Refine)
        and _are(card.bands, int, 1, 3)
        and all(band > 0 for band in card.bands or ())
        and _are(card.stretch, float, 2)
        and (card.stretch is None or _is_range(*card.stretch))
        and isinstance(card.training, Mapping)
        and (card.readout != "head" or card.clusters == network.clusters)
    )


def _is_range(low: float, high: float) -> bool:
    """Whether pixels can be spread over these values: neither the steps nor their number overflow."""
    return low < high and all(map(math.isfinite, (255 * low, 255 * high, 255 * 255 / (high - low))))


def _are(found: Any, kind: type, *counts: int) -> bool:
    """Whether these are so many values of one type, or None."""
    return found is None or (
        isinstance(found, list | tuple)
        and len(found) in counts
        and all(type(each) is kind for each in found)
    )


def _read_clusters(path: Path, count: int, *, merged: bool = False) -> list[Cluster]:
    """The `count` clusters of a `clusters.json`; `merged` ones name their members. Raises ModelError."""
    content = _read_json(path)
    try:
        clusters = [_cluster(entry) for entry in content]
    except TypeError as error:
        raise ModelError(f"{path}: not a list of clusters ({error}); mend or retrain") from error
    ids = [cluster.id for cluster in clusters]
    if ids != list(range(count)) or not all(map(_is_sound, clusters)):
        raise ModelError(
            f"{path}: must list the clusters 0 to {count - 1} with names, RGB colours and shares from 0 to 1; mend it"
        )
    members = [cluster.members for cluster in clusters if cluster.members is not None]
    if members and not merged:
        raise ModelError(f"{path}: only a merge read-out's clusters have members; mend it")
    numbers = all(type(member) is int for group in members for member in group)
    if merged and not (numbers and len(members) == count and is_partition(members)):
        raise ModelError(
            f"{path}: each over-cluster must be a member of one cluster, and each cluster have one; mend it"
        )
    return clusters


def _cluster(entry: Mapping[str, Any]) -> Cluster:
    """Raises TypeError."""
    lists = {name: tuple(entry[name]) for name in ("colour", "members") if name in entry}
    return Cluster(**{**entry, **lists})


def _is_sound(cluster: Cluster) -> bool:
    """Whether name, colour and share are of their types and within their bounds."""
    share = cluster.share
    return (
        type(cluster.id) is int
        and type(cluster.name) is str
        and len(cluster.colour) == 3
        and all(type(value) is int and 0 <= value <= 255 for value in cluster.colour)
        and (share is None or (type(share) in (int, float) and 0 <= share <= 1))
    )


def _read_json(path: Path) -> Any:
    try:
        with open_regular(path) as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ModelError(f"{path}: larger than any real one; give a model of this program")
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: cannot be read as JSON ({error}); give a sound model directory"
        ) from error
