"""What a run directory tells of itself: its records, settings, environment and what was skipped.

A page is better than none, so whatever is absent or damaged is left out. Only what is asked for by name is required.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densesiam_seg.errors import InputError, ModelError
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.inference.model_card import model_folder
from densesiam_seg.io.files import open_regular
from densesiam_seg.io.records import read_records
from densesiam_seg.io.run_directory import read_status
from densesiam_seg.naming.clusters import CLUSTERS, read_clusters

_MOST = 1 << 28
"""Bytes of a file that is read."""


@dataclass(frozen=True)
class RunFiles:
    """A run as its files tell it; of a model that lies elsewhere most of it is empty."""

    folder: Path
    """Of the run, else of the model."""
    is_run: bool = False
    """Whether it is a run of this program, so that it has a place for a report."""
    status: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    steps: Sequence[Mapping[str, Any]] = ()
    epochs: Sequence[Mapping[str, Any]] = ()
    suggestion: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.folder.resolve().name or str(self.folder)

    def training_images(self, remedy: str) -> Manifest:
        """The images of the training. Raises InputError, with the remedy, where they are not known or have moved."""
        if self.manifest is None or not len(self.manifest):
            raise InputError(
                f"{self.folder}: does not tell which images it was trained on; {remedy}"
            )
        _, gone = self.manifest.changed()
        if len(gone) == len(self.manifest):
            raise InputError(f"{self.manifest.shown(0)}: the training images have moved; {remedy}")
        return self.manifest


def read_run(path: Path) -> RunFiles:
    """The files of a run or model directory. Raises ModelError where there is no model."""
    model = model_folder(path)
    folder = model.parent if model.name == "model" and read_status(model.parent) else model
    status = read_status(folder)
    manifest = None
    with suppress(InputError, KeyError, TypeError):
        manifest = Manifest.from_dict(dict(_json(folder / "dataset.json")))
    records: list[dict[str, Any]] = []
    with suppress(InputError):
        records = read_records(folder / "metrics.jsonl")
    suggestion = None
    with suppress(ModelError):
        suggestion = read_clusters(model / CLUSTERS).suggestion
    return RunFiles(
        folder,
        bool(status),
        status,
        _toml(folder / "config.toml"),
        _json(folder / "env.json"),
        manifest,
        [record for record in records if record.get("record") == "step"],
        [record for record in records if record.get("record") == "epoch"],
        suggestion,
    )


def _json(path: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError, RecursionError), open_regular(path) as file:
        found = json.loads(file.read(_MOST))
        if isinstance(found, dict):
            return found
    return {}


def _toml(path: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError, RecursionError), open_regular(path) as file:
        return tomllib.loads(file.read(_MOST).decode("utf-8"))
    return {}


def numbers(records: Sequence[Mapping[str, Any]], *names: str) -> list[float]:
    """A value of each record, found by its names one inside the other; NaN where there is none."""
    values = []
    for record in records:
        found: Any = record
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        sound = isinstance(found, int | float) and not isinstance(found, bool)
        values.append(float(found) if sound else math.nan)
    return values
