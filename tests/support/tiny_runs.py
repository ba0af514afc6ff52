"""What tests do with the events and folders of runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from densesiam_seg.config import PretrainConfig
from densesiam_seg.errors import StoppedError
from densesiam_seg.events import Event, Notice, Started, StepRecord, Trained
from densesiam_seg.io.records import read_records
from densesiam_seg.io.run_directory import read_status
from densesiam_seg.training.recipes import Command
from densesiam_seg.training.train import run_events

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


class TinyRuns:
    """Runs in a folder on twelve images: three epochs of three steps."""

    def __init__(self, folder: Path, images: Path, tiny_settings: dict[str, Any]) -> None:
        self.folder, self.images = folder, images
        self.path = folder / "run"
        known = vars(PretrainConfig())
        common = {name: value for name, value in tiny_settings.items() if name in known}
        self.settings: dict[Command, dict[str, Any]] = {
            # The plain method needs no mixture, which would take most of the time.
            "train": {**tiny_settings, "prior": "none"},
            "pretrain": {**common, "categories": 5, "grid": 2},
        }

    def begin(
        self,
        out: str = "run",
        *,
        command: Command = "train",
        images: str | Path | Sequence[str | Path] | None = None,
        **options: Any,
    ) -> Iterator[Event]:
        """The events of a run in the folder `out` with the settings above, but for the `options` given."""
        options = {**self.settings[command], **options}
        return run_events(command, images or self.images, out=self.folder / out, **options)

    def resume(
        self, out: str = "run", *, command: Command = "train", **options: Any
    ) -> Iterator[Event]:
        """The events of a run in the folder `out` that goes on."""
        return run_events(command, [], out=self.folder / out, resume=True, **options)


def end(events: Iterable[Event]) -> Trained:
    """The last event of a run that goes well."""
    *_, last = events
    assert isinstance(last, Trained)
    return last


def stop_after(step: int, events: Iterator[Event], number: int = signal.SIGTERM) -> StoppedError:
    """Send this process the signal when the step was made, and go on until the run ends."""
    with pytest.raises(StoppedError) as caught:
        for event in events:
            if isinstance(event, StepRecord) and event.step == step:
                os.kill(os.getpid(), number)
    return caught.value


def warnings_of(events: Iterable[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice) and event.warning]


def started(events: Iterable[Event]) -> Started:
    return next(event for event in events if isinstance(event, Started))


def files_of(folder: Path) -> dict[str, bytes]:
    """The contents of all files below the folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def course(run: Path) -> list[dict[str, Any]]:
    """The metrics without their times."""
    return [{**record, "seconds": 0} for record in read_records(run / "metrics.jsonl")]


def ending(run: Path) -> tuple[str, int]:
    """A run's status and exit code."""
    status = read_status(run)
    return status["status"], status["exit_code"]


def reasons(listed: Path) -> dict[str, str]:
    """The paths in `skipped.jsonl` or `failed.jsonl`, each there once, with the class of its reason."""
    records = read_records(listed)
    found = {each["path"]: each["reason"] for each in records}
    assert len(found) == len(records)
    return found


def same_end(run: Path, reference: Path) -> None:
    """The run ended as the reference did: every byte of the model, every record but its time, the status."""
    assert files_of(run / "model") == files_of(reference / "model")
    assert course(run) == course(reference)
    assert read_status(run)["status"] == "done"
