"""`predict.json`: what made the masks of a folder, so that a job run again keeps those that it would make again.

The processes of a job in shards agree on it without a word: all of them may begin at the same moment in a new folder,
on several hosts, and the record of the first one counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from densesiam_seg.errors import UsageError
from densesiam_seg.io.files import (
    JSON,
    open_regular,
    output_error,
    replace_json,
    temporary_name,
    to_json,
)

RECORD = "predict.json"
_MOST = 1 << 20
"""Bytes of a record."""
_TRIES = 20


@dataclass(frozen=True)
class Record:
    """What made the masks of a folder that are not older than `since`."""

    facts: Mapping[str, Any]
    """All that the bytes of a file depend on, beside the image."""
    since: int = 0
    """When the first job with these facts began, by the disk's clock, in nanoseconds."""
    replaces: bool = False
    """Whether it may replace files that are older: it was given --overwrite."""
    images: str = ""
    """The digest of the list of images, where it was done in shards."""

    @property
    def digest(self) -> str:
        """SHA-256 of the facts."""
        return hashlib.sha256(to_json(self.facts).encode("ascii")).hexdigest()


def read_record(folder: Path) -> Record | None:
    """The record of a folder, if it has one. Raises UsageError for a file of that name that is none."""
    path = folder / RECORD
    try:
        with open_regular(path) as file:
            found = json.loads(file.read(_MOST))
        digest = found.pop("digest")
        record = Record(**found)
        if digest != record.digest or not _is_sound(record):
            raise ValueError("its digest or the kind of a value does not fit")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path}: is no record of an earlier prediction, or a damaged one; "
            "move it away or give another --out"
        ) from error
    return record


def _is_sound(record: Record) -> bool:
    """Whether each value is of its type."""
    kinds = (type(record.since), type(record.replaces), type(record.images))
    return isinstance(record.facts, dict) and kinds == (int, bool, str)


@dataclass(frozen=True)
class Claim:
    """The record under which a job works, whether it is new, and whether shards before had another list of images."""

    record: Record
    new: bool = False
    other_images: bool = False


def claim(
    folder: Path,
    own: Mapping[str, Any],
    *,
    keeps: bool = False,
    overwrite: bool = False,
    adopts: bool = False,
    images: str = "",
) -> Claim:
    """Begin a job with these facts in a folder: its record is read, or written where it is absent or says otherwise.

    A job that `keeps` masks is refused where others made them, unless it may `overwrite` those; one that `adopts` them
    takes those for its own of which nothing tells what made them. Raises UsageError and OutputError.
    """
    path = folder / RECORD
    wanted = Record(own, replaces=overwrite, images=images)
    for _ in range(_TRIES):
        found = read_record(folder)
        if found is None:
            fresh = wanted if adopts and not overwrite else replace(wanted, since=_now(folder))
            if _create(path, fresh):
                return Claim(fresh, new=True)
        elif found.digest == wanted.digest:
            known = replace(
                found, replaces=found.replaces or overwrite, images=images or found.images
            )
            if known != found:
                _write(path, known)
            return Claim(known, other_images=bool(found.images) and known.images != found.images)
        elif keeps and not overwrite:
            raise UsageError(
                f"{folder}: its masks were made otherwise ({_difference(found.facts, own)}); "
                "give --overwrite to make them again, or another --out"
            )
        else:
            fresh = replace(wanted, since=_now(folder))
            _write(path, fresh)
            return Claim(fresh, new=True)
    raise UsageError(f"{path}: comes and goes; give another --out")


def require_unchanged(folder: Path, record: Record) -> None:
    """Raises UsageError where a job with other facts has begun in the folder since."""
    found = read_record(folder)
    if found is not None and found.digest != record.digest:
        raise UsageError(
            f"{folder}: another job has written here meanwhile ({_difference(found.facts, record.facts)}); "
            "run one of them again with --overwrite, or with another --out"
        )


def _difference(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What a user can look for."""
    other = [name for name in own if theirs.get(name) != own[name]]
    told = [
        f"another {'model' if name == 'model' else 'state of its clusters'}"
        if name in ("model", "clusters")
        else f"{name.replace('_', '-')} {_shown(theirs.get(name))}, now {_shown(own[name])}"
        for name in other
    ]
    return "; ".join(told)


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _content(record: Record) -> dict[str, JSON]:
    return {"digest": record.digest, **asdict(record)}


def _write(path: Path, record: Record) -> None:
    replace_json(path, _content(record))


def _create(path: Path, record: Record) -> bool:
    """Write a record where there is none; whether this process was the first. Raises OutputError."""
    fresh = temporary_name(path)
    _write(fresh, record)
    try:
        os.link(fresh, path)
    except FileExistsError:
        return False
    except OSError:
        # A disk without links: two that begin within a millisecond may both think that they were first.
        if os.path.lexists(path):
            return False
        _write(path, record)
    finally:
        with suppress(OSError):
            fresh.unlink()
    return True


def _now(folder: Path) -> int:
    """The time by the clock of the disk, which may be another host's. Raises OutputError."""
    probe = temporary_name(folder / RECORD)
    try:
        probe.touch()
        return probe.stat().st_mtime_ns
    except OSError as error:
        raise output_error(probe, error) from error
    finally:
        with suppress(OSError):
            probe.unlink()
