"""The files of a model directory, verified: `config.json`, `clusters.json`, and the digest of `model.safetensors`.

`config.json` begins with the SHA-256 of all that follows, and holds that of the tensors. `clusters.json` has
none: it is the user's to edit, and each of its values is checked. Nothing here needs torch: a refusal comes at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from densesiam_seg.backbones import plausible
from densesiam_seg.config import largest_image_size
from densesiam_seg.errors import ModelError
from densesiam_seg.io.files import replace_file
from densesiam_seg.io.sealed import read_sealed, seal, verify
from densesiam_seg.io.tensors import read_layout
from densesiam_seg.naming.clusters import CLUSTERS, Cluster, read_clusters
from densesiam_seg.network.architecture import Architecture, Features

Readout = Literal["head", "kmeans", "merge"]
Refine = Literal["none", "guided", "pamr"]

CONFIG = "config.json"
TENSORS = "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
_FORMAT = 2


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
    clusters: tuple[Cluster, ...]
    tensors: Path
    """A safetensors file with a sound header; its tensors are still to be compared with the card."""


def stored_model(path: Path) -> StoredModel:
    """The model that a run or model directory holds, verified without torch. Raises ModelError."""
    folder = model_folder(path)
    card, digest = _read_card(folder / CONFIG)
    merged = card.readout == "merge"
    clusters = read_clusters(folder / CLUSTERS, card.clusters, merged=merged).clusters
    tensors = folder / TENSORS
    _verify_once(tensors, digest, _state(tensors))
    read_layout(tensors)
    return StoredModel(card, clusters, tensors)


def _state(path: Path) -> tuple[int, ...]:
    """What changes with a file."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # which is told where the file is read
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@lru_cache(maxsize=8)
def _verify_once(path: Path, sha256: str, state: tuple[int, ...]) -> None:
    """`verify`; a command looks at its model before it imports torch, and loads it afterwards."""
    verify(path, sha256)


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
