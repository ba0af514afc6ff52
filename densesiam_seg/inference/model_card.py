"""What the JSON files of a model directory say: the card in `config.json`, the clusters in `clusters.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from densesiam_seg.clustering.merging import is_partition
from densesiam_seg.errors import ModelError
from densesiam_seg.io.files import open_regular
from densesiam_seg.network.backbones import plausible
from densesiam_seg.network.model import Architecture
from densesiam_seg.pictures.masks import Colour, palette

Readout = Literal["head", "kmeans", "merge"]
Refine = Literal["none", "guided", "pamr"]

FORMAT = 1
LARGEST_CONFIG = 1 << 20


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
    """Ids the read-out can give; the head's own number unless a read-out of centroids has another."""
    refine: Refine = "none"
    """What sharpens the edges of its masks unless another way is asked for."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """What is worth knowing of how it was made: preset, epochs, images, version."""


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
        if (folder / "config.json").is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise ModelError(
            f"{path}: this run has not finished; end it with the command that began it and --resume --out {path}"
        )
    raise ModelError(f"{path}: no model here (no config.json); give a run or model directory")


def read_card(path: Path) -> ModelCard:
    """What a `config.json` says. Raises ModelError for anything that no model of this program has."""
    content = _read_json(path)
    refusal = f"{path}: not a model of this program"
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelError(
            f"{refusal} (format {FORMAT} is wanted); retrain it or use the version that wrote it"
        )
    try:
        content.pop("format")
        architecture = Architecture(**content.pop("architecture"))
        card = ModelCard(architecture, **content)
        sound = (
            type(architecture.backbone) is str
            and plausible(architecture.backbone)
            and architecture.features in ("fpn", "res5")
            and type(architecture.image_head) is bool
            and type(architecture.mixture) is bool
            and all(
                type(number) is int and least <= number <= 4096
                for number, least in (
                    (architecture.channels, 1),
                    (architecture.clusters, 1),
                    (architecture.over_clusters, 0),
                    (card.clusters, 1),
                )
            )
            and type(card.image_size) is int
            and 32 <= card.image_size <= 4096
            and card.readout in get_args(Readout)
            and card.refine in get_args(Refine)
            and (card.readout != "head" or card.clusters == architecture.clusters)
        )
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{refusal} ({error}); retrain it or use the version that wrote it"
        ) from error
    if not sound:
        raise ModelError(f"{refusal}: a value is out of range; retrain it")
    return card


def read_clusters(path: Path, count: int, *, merged: bool = False) -> list[Cluster]:
    """The `count` clusters of a `clusters.json`; `merged` ones name their members. Raises ModelError."""
    content = _read_json(path)
    try:
        clusters = [_cluster(entry) for entry in content]
        sound = [cluster.id for cluster in clusters] == list(range(count)) and all(
            len(cluster.colour) == 3
            and all(type(value) is int and 0 <= value <= 255 for value in cluster.colour)
            for cluster in clusters
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not a list of clusters ({error}); mend or retrain") from error
    if not sound:
        raise ModelError(
            f"{path}: must list the clusters 0 to {count - 1} with RGB colours; mend it"
        )
    _check_members(path, clusters, merged)
    return clusters


def _cluster(entry: Mapping[str, Any]) -> Cluster:
    lists = {name: tuple(entry[name]) for name in ("colour", "members") if name in entry}
    return Cluster(**{**entry, "colour": entry["colour"], **lists})


def _check_members(path: Path, clusters: Sequence[Cluster], merged: bool) -> None:
    """Raises ModelError unless the members of `merged` clusters are 0, 1, 2, … without gaps, and others have none."""
    members = [cluster.members for cluster in clusters if cluster.members is not None]
    numbers = all(type(member) is int for group in members for member in group)
    if merged and not (numbers and len(members) == len(clusters) and is_partition(members)):
        raise ModelError(
            f"{path}: each over-cluster must be a member of one cluster, and each cluster have one; mend it"
        )
    if members and not merged:
        raise ModelError(f"{path}: only a merge read-out's clusters have members; mend it")


def _read_json(path: Path) -> Any:
    try:
        with open_regular(path) as file:
            text = file.read(LARGEST_CONFIG + 1)
        if len(text) > LARGEST_CONFIG:
            raise ModelError(f"{path}: larger than any real one; give a model of this program")
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: cannot be read as JSON ({error}); give a sound model directory"
        ) from error
