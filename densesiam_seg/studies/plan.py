"""What a study will do, checked before anything is trained: its rows, seeds, settings and data."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import densesiam_seg
from densesiam_seg.config import PretrainConfig, with_settings
from densesiam_seg.datasets.declaration import IGNORE, Dataset, load_dataset
from densesiam_seg.datasets.labels import read_label
from densesiam_seg.datasets.reader import Sample, Samples, samples
from densesiam_seg.errors import InputError, ModelError, UsageError
from densesiam_seg.evaluation.evaluate import Protocol, pick_protocol
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.images.scan import scan
from densesiam_seg.io.devices import available_cores, pick_device
from densesiam_seg.io.environment import environment
from densesiam_seg.io.files import JSON, open_regular, replace_json, to_json
from densesiam_seg.io.parallel import ahead
from densesiam_seg.presets import Preset
from densesiam_seg.studies.ablations import Row, require_free, rows_of
from densesiam_seg.training.weights import require_source

STUDY = "study.json"
MOST_SEEDS = 100


@dataclass(frozen=True)
class Plan:
    """A study as asked for; `settings` are those that all of its runs share, the seed apart."""

    study: str
    given: str
    """The dataset's name or file, as it was given."""
    dataset: Dataset
    root: Path
    train: Samples
    scored: Samples
    protocol: Protocol
    images: Manifest
    seeds: tuple[int, ...]
    preset: Preset | None
    settings: Mapping[str, Any]

    @property
    def rows(self) -> tuple[Row, ...]:
        return rows_of(self.study)

    def runs(self) -> list[tuple[Row, int]]:
        """Every row with every seed, seed by seed, so that a stopped study has as many of each row."""
        return [(row, seed) for seed in self.seeds for row in self.rows]

    def run_settings(self, row: Row, seed: int) -> dict[str, Any]:
        """The settings of one run."""
        return {**self.settings, **row.settings, "seed": seed}

    def describe(self) -> dict[str, Any]:
        """What a resumed study must have in common with the one that began, as JSON."""
        described = {
            "study": self.study,
            "dataset": self.dataset.name,
            "split": self.scored.split,
            "train_split": self.train.split,
            "protocol": self.protocol.name,
            "seeds": self.seeds,
            "preset": self.preset,
            "settings": self.settings,
            "rows": [asdict(row) for row in self.rows],
            "data": {
                "images": {"count": len(self.images), "digest": self.images.digest},
                "train": _data(self.train),
                "scored": _data(self.scored),
            },
        }
        plain: dict[str, Any] = json.loads(to_json(described))
        return plain

    def notes(self) -> list[str]:
        """What fixes the numbers, for the table."""
        train, scored = self.train, self.scored
        return [
            f"data: {self.dataset.title}; scored on {scored.split} ({len(scored)} images, {scored.digest[:12]}), "
            f"linear probe trained on {train.split} ({len(train)} images, {train.digest[:12]}), pre-trained on "
            f"{len(self.images)} unlabelled images ({self.images.digest[:12]})"
        ]


def plan_study(
    study: str,
    dataset: str | Path,
    root: str | Path,
    *,
    images: Sequence[str | Path] = (),
    seeds: int = 3,
    split: str | None = None,
    train_split: str = "train",
    protocol: str | None = None,
    preset: Preset | None = None,
    **settings: Any,
) -> Plan:
    """Look at everything that can be wrong and is cheap to look at; the options are those of `study_events`.

    Raises UsageError for names, options and settings, InputError for data that are not there.
    """
    require_free(study, settings)
    if not 1 <= seeds <= MOST_SEEDS:
        raise UsageError(f"--seeds {seeds}: must be 1 to {MOST_SEEDS}")
    first = settings.get("seed", 0)
    for row in rows_of(study):
        for seed in (first, first + seeds - 1):
            with_settings(PretrainConfig(), {**settings, **row.settings, "seed": seed})
    pick_device(settings.get("device", "auto"))
    require_source(settings.get("weights", "auto"))
    declared = load_dataset(dataset)
    chosen = pick_protocol(protocol or declared.protocol)
    scored, train = samples(declared, root, split), samples(declared, root, train_split)
    _require_apart(train, scored)
    return Plan(
        study,
        str(dataset),
        declared,
        Path(root),
        train,
        scored,
        chosen,
        scan(list(images) or [sample.image for sample in train]),
        tuple(range(first, first + seeds)),
        preset,
        {name: value for name, value in settings.items() if name != "seed"},
    )


def _require_apart(train: Samples, scored: Samples) -> None:
    """Raises UsageError where the linear probe would be scored on what it was trained on."""
    shared = {sample.label for sample in train} & {sample.label for sample in scored}
    if shared:
        raise UsageError(
            f"--split {scored.split}, --train-split {train.split}: have {len(shared)} labels in common, first "
            f"{min(shared)}; the linear probe must be scored on other labels than it was trained on"
        )


def checked_labels(plan: Plan) -> Iterator[tuple[int, int]]:
    """Read every label of both splits, which takes seconds where a study takes hours; yields how many, and of how many.

    Raises InputError for a label that does not decode or has values of no class, and for a split without any label.
    """

    def labelled(sample: Sample) -> bool:
        return bool((read_label(plan.dataset, sample.label) != IGNORE).any())

    splits = (plan.train, plan.scored)
    total = sum(map(len, splits))
    found = dict.fromkeys((split.split for split in splits), False)
    names = [split.split for split in splits for _ in split]
    read = ahead(labelled, chain(*splits), available_cores())
    for done, (name, any_label) in enumerate(zip(names, read, strict=True), 1):
        found[name] |= any_label
        yield done, total
    for name, any_label in found.items():
        if not any_label:
            raise InputError(
                f"{plan.root}: no pixel of {plan.dataset.name} {name} has a label; a probe needs a labelled split"
            )


def write_plan(folder: Path, plan: Plan) -> None:
    """Write `study.json`. Raises OutputError."""
    facts: dict[str, JSON] = {"version": densesiam_seg.__version__, "environment": environment()}
    replace_json(folder / STUDY, {**plan.describe(), **facts})


def require_same(folder: Path, plan: Plan) -> None:
    """Raises UsageError where `plan` is not the one that the study in `folder` began with, ModelError where its data
    were changed since, or where `study.json` cannot be read."""
    now = plan.describe()
    try:
        with open_regular(folder / STUDY) as file:
            began = json.load(file)
        before = {name: began[name] for name in now}
        data, settings = dict(before.pop("data")), dict(before.pop("settings"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{folder}: no study to resume here ({STUDY}: {error}); start it again with --overwrite"
        ) from error
    data_now = now.pop("data")
    given = now.pop("settings")
    names = [*now, *sorted({*settings, *given})]
    before, now = {**settings, **before}, {**given, **now}
    for name in names:
        if before.get(name) != now.get(name):
            raise UsageError(
                f"--resume: {name} is {_shown(before.get(name))} in {folder / STUDY} and {_shown(now.get(name))} now; "
                "a resumed study keeps its settings, so give the same options or start a new study"
            )
    for part, what in _PARTS.items():
        if data.get(part) != data_now[part]:
            raise ModelError(
                f"{folder}: the {what} were changed, added or removed since the study began; put them back, or start a "
                "new study"
            )


_PARTS = {
    "images": "images to pre-train on",
    "train": "images or labels of the train split",
    "scored": "images or labels of the scored split",
}


def _shown(value: object) -> str:
    return "not given" if value is None else reprlib.repr(value)


def _data(found: Samples) -> dict[str, Any]:
    """What tells whether a split is still the same: which samples, and their files' sizes and times."""
    files = scan([path for sample in found for path in (sample.image, sample.label)])
    return {"count": len(found), "digest": found.digest, "files": files.digest}
