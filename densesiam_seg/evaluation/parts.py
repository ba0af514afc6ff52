"""Parts of an evaluation in files: each is scored on its own, wherever that is, and all together give one score.

A part holds its confusion matrix and all that a score depends on, so that joining them needs neither data nor model.
It begins with the digest of what follows (`io.sealed`): a part that is damaged or edited is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from densesiam_seg.errors import InputError, ModelError, UsageError, counted
from densesiam_seg.evaluation.counting import BATCH, SampleTally, Tallying, groups_of
from densesiam_seg.evaluation.evaluate import Benchmark, last_events, segmenter_job
from densesiam_seg.evaluation.job import Evaluation, Job
from densesiam_seg.evaluation.protocol import Turned
from densesiam_seg.events import Notice, Progress
from densesiam_seg.images.decoding import Noted
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import replace_file
from densesiam_seg.io.sealed import read_sealed, seal
from densesiam_seg.peers.shard import Shard

FORMAT = 2
"""Raised with a change by which the same model has other masks, as well as with one of the form."""
MAX_BYTES = 1 << 30
"""Of a part: names of images that could not be read may be many."""
_NAMES = {
    "dataset": "data set",
    "digest": "images",
    "names": "classes",
    "kinds": "kinds of classes",
    "left": "merges of clusters",
    "notes": "warnings",
    "arithmetic": "device or precision",
}
"""What fields of a job are called in messages."""


@dataclass(frozen=True)
class Part:
    """What one shard of an evaluation came to."""

    shard: Shard
    job: Job
    tally: SampleTally

    def data(self) -> bytes:
        """The content of its file."""
        tally = self.tally
        noted = {**asdict(tally.noted), "brightest": [float(n) for n in tally.noted.brightest]}
        content = {
            "format": FORMAT,
            "shard": asdict(self.shard),
            "job": asdict(self.job),
            "images": tally.images,
            "unreadable": tally.unreadable,
            "turned": asdict(tally.turned),
            "noted": noted,
            "counts": tally.counts[0].tolist(),
        }
        return seal(content)


def part_events(
    segmenter: Segmenter,
    task: Benchmark,
    shard: Shard,
    refinement: Refinement = AS_TRAINED,
    *,
    earlier: Part | None = None,
) -> Iterator[Notice | Progress | Part]:
    """Score a part of the images; the last event is the `Part`.

    `earlier` is what is there of an earlier run: where it is of the same job it is the result. Raises as
    `segmenter_events` does, and UsageError where `earlier` is of another job.
    """
    counting, job = segmenter_job(segmenter, task, refinement)
    if earlier is not None:
        if (earlier.shard, earlier.job) != (shard, job):
            raise UsageError(
                "--out: holds another part or that of another evaluation; give --overwrite or another name"
            )
        yield Notice("the part is there already, from an earlier run")
        yield earlier
        return
    yield from (Notice(note, warning=True) for note in job.notes)
    groups = shard.part(groups_of(job.samples))
    work, samples = Tallying(counting, task.samples.items, groups), _samples(groups, job.samples)
    with closing(work.run()) as steps:
        for _ in steps:
            yield Progress("scoring", work.images, samples)
    tally = work.tally
    yield from tally.notices()
    yield Part(shard, job, tally)


def write_part(path: Path, part: Part) -> None:
    """Write a part's file whole or not at all. Raises OutputError."""
    replace_file(path, part.data())


def read_part(path: Path) -> Part:
    """The part in a file. Raises InputError for anything else, and for a part that is not as it was written."""
    try:
        content = read_sealed(path, MAX_BYTES)
    except ModelError as error:
        raise InputError(
            f"{path}: no part of an evaluation, or a damaged one ({_reason(path, error)}); "
            "make it again with evaluate --shard"
        ) from error
    try:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"format {FORMAT} is wanted")
        return _part(content)
    except (
        AssertionError,
        AttributeError,
        KeyError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(
            f"{path}: no part of an evaluation by this version ({error}); make it again with evaluate --shard"
        ) from error


def _reason(path: Path, error: ModelError) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    return "its SHA-256 does not match"


def _part(content: Mapping[str, Any]) -> Part:
    """Raises one of several built-in errors for what no part holds."""
    job = Job(**{name: _frozen(value) for name, value in content["job"].items()})
    _require(_is_job(job), "its job")
    shard = Shard(**content["shard"])
    groups = shard.part(groups_of(job.samples))
    own = _samples(groups, job.samples)
    _require(content["images"] == own, "its number of images")
    rows = content["counts"]
    _require(
        len(rows) == len(job.names)
        and all(len(row) == job.clusters for row in rows)
        and all(type(count) is int and count >= 0 for row in rows for count in row),
        "its counts",
    )
    turned = Turned(**{name: _frozen(value) for name, value in content["turned"].items()})
    noted = Noted(**{name: _frozen(value) for name, value in content["noted"].items()})
    _require(type(turned.count) is type(noted.deep) is type(noted.dark) is int, "its warnings")
    unreadable = _frozen(content["unreadable"])
    tally = SampleTally((np.array(rows, np.int64),), own, unreadable, turned, noted)
    return Part(shard, job, tally)


def _frozen(value: Any) -> Any:
    """JSON with tuples for its lists."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return {name: _frozen(each) for name, each in value.items()}
    return value


def _is_job(job: Job) -> bool:
    """Whether the values are of their types."""
    texts = (job.dataset, job.split, job.protocol, job.digest, job.readout, job.model)
    lists = (job.missing, job.names, job.kinds, job.notes)
    numbers = (job.samples, job.clusters, job.expected or 0)
    return (
        all(type(each) is str for each in (*texts, job.arithmetic))
        and all(type(each) is tuple for each in lists)
        and all(type(each) is str for each in (*job.missing, *job.names, *job.notes))
        and all(type(each) is int and each >= 0 for each in numbers)
        and (job.left is None or all(each in range(job.clusters) for each in job.left))
    )


def _samples(groups: range, samples: int) -> int:
    """How many samples a part of all groups has."""
    return max(min(groups.stop * BATCH, samples) - groups.start * BATCH, 0)


def _require(right: bool, what: str) -> None:
    if not right:
        raise ValueError(f"{what} cannot be right")


def joined_events(paths: Sequence[str | Path]) -> Iterator[Notice | Evaluation]:
    """All parts of one evaluation → what one process gives; the last event is the `Evaluation`.

    `paths` are files of parts, or folders that hold them. Raises InputError unless each part is there once and all
    belong to one evaluation.
    """
    files, others = part_files(paths)
    found = [(path, read_part(path)) for path in files]
    if not found:
        raise InputError(f"{paths[0]}: no part of an evaluation here{_others(others)}")
    first, part = found[0]
    places: dict[int, Path] = {}
    for path, each in found:
        _require_same(first, part, path, each)
        if each.shard.index in places:
            raise InputError(
                f"{path}: is part {each.shard}, and so is {places[each.shard.index]}; give each part once"
            )
        places[each.shard.index] = path
    lacking = [index for index in range(part.shard.count) if index not in places]
    if lacking:
        raise InputError(
            f"{counted(len(lacking), 'part')} of {part.shard.count} missing, first {lacking[0]}/{part.shard.count}"
            f"{_others(others)}; make it with evaluate --shard {lacking[0]}/{part.shard.count}"
        )
    yield from (Notice(note, warning=True) for note in part.job.notes)
    tallies = [each.tally for _, each in sorted(found, key=lambda each: each[1].shard.index)]
    yield from last_events([part.job], [None], sum(tallies[1:], tallies[0]))


def part_files(paths: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """The files that are named, and those of named folders that begin as parts do; and the other JSON files there."""
    files: list[Path] = []
    others: list[Path] = []
    for path in map(Path, paths):
        if not os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` raises for long names
            files.append(path)
            continue
        for each in sorted(path.glob("*.json")):
            (files if _begins_as_part(each) else others).append(each)
    return files, others


def _begins_as_part(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(11) == seal({})[:11]
    except OSError:
        return True  # which `read_part` tells


def _others(others: Sequence[Path]) -> str:
    return f" ({counted(len(others), 'other file')}, first {others[0]})" if others else ""


def _require_same(first: Path, part: Part, path: Path, other: Part) -> None:
    """Raises InputError for parts of two evaluations."""
    if part.shard.count != other.shard.count:
        raise InputError(
            f"{path}: is part {other.shard}, but {first} is part {part.shard}; give the parts of one evaluation"
        )
    for field in fields(Job):
        values = [getattr(each.job, field.name) for each in (other, part)]
        if values[0] != values[1]:
            what = _NAMES.get(field.name, field.name)
            told = (
                ""
                if field.name in ("digest", "model")
                else f" ({_cut(values[0])} and {_cut(values[1])})"
            )
            raise InputError(
                f"{path}: is of another evaluation than {first}, their {what} differ{told}; "
                "give the parts of one"
            )


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:119]}…"
