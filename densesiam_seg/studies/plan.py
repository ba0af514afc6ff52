"""What a study will do, checked before anything is trained: its rows, seeds, settings and data."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import densesiam_seg
from densesiam_seg.config import PretrainConfig, with_settings
from densesiam_seg.datasets.declaration import IGNORE
from densesiam_seg.datasets.labels import read_label
from densesiam_seg.datasets.reader import Sample, Samples, samples
from densesiam_seg.errors import InputError, ModelError, UsageError
from densesiam_seg.evaluation.evaluate import Benchmark, benchmark
from densesiam_seg.evaluation.probe import require_apart
from densesiam_seg.evaluation.protocol import Turned
from densesiam_seg.events import Notice, Progress
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.images.scan import scan
from densesiam_seg.io.devices import available_cores, pick_device
from densesiam_seg.io.environment import environment
from densesiam_seg.io.files import open_regular, replace_json, to_json
from densesiam_seg.io.parallel import ahead
from densesiam_seg.presets import Preset
from densesiam_seg.studies.ablations import Row, require_free, rows_of
from densesiam_seg.training.weights import require_source

STUDY = "study.json"
MAX_SEEDS = 100
DATA = {
    "images": "images to pre-train on",
    "train": "images or labels of the train split",
    "scored": "images or labels of the scored split",
}
"""What must not change while a study is stopped, by its name in `study.json`."""


@dataclass(frozen=True)
class Plan:
    """A study as asked for; `settings` are those that all of its runs share, the seed apart."""

    study: str
    given: str
    """The dataset's name or file, as it was given."""
    root: Path
    task: Benchmark
    """What the probes are scored on."""
    train: Samples
    """What the linear probe learns from."""
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

    def describe(self) -> dict[str, Any]:
        """What a resumed study must have in common with the one that began, as JSON."""
        described = {
            "study": self.study,
            "dataset": self.task.dataset.name,
            "split": self.task.samples.split,
            "train_split": self.train.split,
            "protocol": self.task.protocol.name,
            "seeds": self.seeds,
            "preset": self.preset,
            "settings": self.settings,
            "rows": [asdict(row) for row in self.rows],
            "data": {
                "images": {"count": len(self.images), "digest": self.images.digest},
                "train": _data(self.train),
                "scored": _data(self.task.samples),
            },
        }
        plain: dict[str, Any] = json.loads(to_json(described))
        return plain

    def data_note(self) -> str:
        """The line of the table that fixes the data."""
        train, scored = self.train, self.task.samples
        return (
            f"data: {self.task.dataset.title}; scored on {scored.split} ({len(scored)} images, {scored.digest[:12]}), "
            f"linear probe trained on {train.split} ({len(train)} images, {train.digest[:12]}), pre-trained on "
            f"{len(self.images)} unlabelled images ({self.images.digest[:12]})"
        )


def _data(split: Samples) -> dict[str, Any]:
    """Identifies a split's contents: its samples, and their files' sizes and times."""
    files = scan([path for sample in split for path in (sample.image, sample.label)])
    return {"count": len(split), "digest": split.digest, "files": files.digest}


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
    """Check everything that is quick to check.

    `study` is a key of `STUDIES`. Every run pre-trains on `images` (default: those of `train_split`, without their
    labels), with the seeds `seed`, `seed` + 1, …; its probes are those of `dataset` below `root`. `settings` are fields
    of `PretrainConfig` that no row decides. Raises UsageError for names, options and settings, InputError for data that
    are not there.
    """
    require_free(study, settings)
    if not 1 <= seeds <= MAX_SEEDS:
        raise UsageError(f"--seeds {seeds}: must be 1 to {MAX_SEEDS}")
    first = settings.pop("seed", 0)
    for row in rows_of(study):
        for seed in (first, first + seeds - 1):
            with_settings(PretrainConfig(), {**settings, **row.settings, "seed": seed})
    pick_device(settings.get("device", "auto"))
    require_source(settings.get("weights", "auto"))
    task = benchmark(dataset, root, split, protocol=protocol)
    train = samples(task.dataset, root, train_split)
    require_apart(train, task.samples)
    return Plan(
        study,
        str(dataset),
        Path(root),
        task,
        train,
        scan(list(images) or [sample.image for sample in train]),
        tuple(range(first, first + seeds)),
        preset,
        settings,
    )


def checked_labels(plan: Plan) -> Iterator[Notice | Progress]:
    """Read every label of both splits, which takes seconds where a study takes hours; warn as scoring does.

    Raises InputError for a label that does not decode or has values of no class, and for a split without any label.
    """

    turned: dict[Sample, Turned] = {}

    def labelled(sample: Sample) -> bool:
        turned[sample] = Turned.of(sample)
        return bool((read_label(plan.task.dataset, sample.label) != IGNORE).any())

    total = len(plan.train) + len(plan.task.samples)
    done = 0
    for split in (plan.train, plan.task.samples):
        yield from (Notice(note, warning=True) for note in split.notes)
        any_label = False
        for each in ahead(labelled, split, available_cores()):
            any_label |= each
            done += 1
            yield Progress("checking labels", done, total)
        if not any_label:
            raise InputError(
                f"{plan.root}: no pixel of {plan.task.dataset.name} {split.split} has a label; a probe needs a "
                "labelled split"
            )
    yield from sum(turned.values(), Turned()).notices()


def write_plan(folder: Path, plan: Plan) -> None:
    """Write `study.json`. Raises OutputError."""
    version = densesiam_seg.__version__
    described = {**plan.describe(), "version": version, "environment": environment()}
    replace_json(folder / STUDY, described)


def require_same(folder: Path, plan: Plan) -> None:
    """Raises UsageError where `plan` is not the one that the study in `folder` began with, ModelError where its data
    were changed since, or where `study.json` cannot be read."""
    described = plan.describe()
    try:
        with open_regular(folder / STUDY) as file:
            saved = json.load(file)
        before, data = _options({name: saved[name] for name in described}), dict(saved["data"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{folder}: no study to resume here ({STUDY}: {error}); start it again with --overwrite"
        ) from error
    now = _options(described)
    for name in (*now, *before):
        if before.get(name) != now.get(name):
            raise UsageError(
                f"--resume: {name} is {_shown(before.get(name))} in {folder / STUDY} and {_shown(now.get(name))} now; "
                "a resumed study keeps its settings, so give the same options or start a new study"
            )
    for part, what in DATA.items():
        if data.get(part) != described["data"][part]:
            raise ModelError(
                f"{folder}: the {what} were changed, added or removed since the study began; put them back, or start a "
                "new study"
            )


def _options(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description without its data, and with each of the settings by its own name."""
    options = {**described, **described["settings"]}
    return {name: value for name, value in options.items() if name not in ("settings", "data")}


def _shown(value: object) -> str:
    return "not given" if value is None else reprlib.repr(value)
