"""The use cases `train` and `pretrain`: a folder of images → a run directory with a model.

A run is a stream of events: its settings and place are checked, `setup` makes a `Training` ready, `loop` trains it, and
the model is saved.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import densesiam_seg
from densesiam_seg.errors import StoppedError, UsageError
from densesiam_seg.events import EpochRecord, Event, Notice, Progress, Started, StepRecord, Trained
from densesiam_seg.images.scan import scan
from densesiam_seg.io.devices import pick_device
from densesiam_seg.io.files import output_error, remove_leftovers
from densesiam_seg.io.lock import run_lock
from densesiam_seg.io.records import Records
from densesiam_seg.io.run_directory import Status, new_run_folder, noting_failure, write_status
from densesiam_seg.io.signals import stop_requests
from densesiam_seg.network.encoder import require_backbone
from densesiam_seg.presets import Preset
from densesiam_seg.training.checkpoint import save_checkpoint
from densesiam_seg.training.loop import Training
from densesiam_seg.training.recipes import Command, begun, choose_settings
from densesiam_seg.training.setup import Run, fresh, numerics, resumed
from densesiam_seg.training.snapshot import draw_clusters, segmenter_of
from densesiam_seg.training.weights import load_network, require_source

Images = str | Path | Sequence[str | Path]
"""Files, folders, globs or lists of images."""

SAVE_SECONDS = 60.0
"""Wall time between checkpoints. It does not affect results: a run can be resumed from any step."""


def train(images: Images, out: str | Path | None = None, **options: Any) -> Trained:
    """Train on unlabelled images and return where the model lies; options are those of `training_events`."""
    return _end(training_events(images, out=out, **options))


def pretrain(images: Images, out: str | Path | None = None, **options: Any) -> Trained:
    """Pre-train on unlabelled images and return where the model lies; options are those of `pretraining_events`."""
    return _end(pretraining_events(images, out=out, **options))


def training_events(images: Images, **options: Any) -> Iterator[Event]:
    """Train to segment, one event at a time; the options are `run_events`'s and the fields of `TrainConfig`."""
    return run_events("train", images, **options)


def pretraining_events(images: Images, **options: Any) -> Iterator[Event]:
    """Pre-train, one event at a time; the options are `run_events`'s and the fields of `PretrainConfig`."""
    return run_events("pretrain", images, **options)


def _end(events: Iterator[Event]) -> Trained:
    (last,) = deque(events, maxlen=1)
    assert isinstance(last, Trained)
    return last


def run_events(
    command: Command,
    images: Images,
    *,
    out: str | Path | None = None,
    preset: Preset | None = None,
    max_time: float | None = None,
    max_bad: float = 1.0,
    init_from: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    follow_links: bool = False,
    **settings: Any,
) -> Iterator[Event]:
    """Train in a run directory, one event at a time; the last event is `Trained`.

    `settings` are fields of the command's config that differ from the preset's. `max_time` (seconds) ends training
    early with a model. `max_bad` is the share of unusable files above which the run is refused. With `resume` the run
    in `out` (else the latest one) goes on to the same final weights; `images` may then be empty and nothing may change.
    `follow_links` reads folders behind links too.
    Raises a DenseSiamError; a stop signal raises StoppedError after saving.
    """
    if resume and (init_from or overwrite or preset):
        raise UsageError(
            "--resume goes on with the same run; leave out --init-from, --overwrite and --preset"
        )
    # Refuse wrong settings before anything is written; the number of images does not matter for that.
    own = resume or init_from is not None
    given, learned = (settings, False) if own else begun(command, preset, settings, None)
    _, checked = choose_settings(command, preset, 0, False, given, learned=learned)
    if not resume:
        pick_device(checked.device)
        require_backbone(checked.backbone, checked.image_size)
        require_source(checked.weights)
        initial = (load_network(Path(init_from)), str(init_from)) if init_from else None
        inputs = [images] if isinstance(images, str | Path) else images
        pages = checked.page == "all"
        manifest = scan(inputs, follow_links=follow_links, out=out, pages=pages)
    folder = new_run_folder(command, Path(out) if out else None, overwrite=overwrite, resume=resume)
    with run_lock(folder), stop_requests() as stop:
        run = Run(command, folder, stop)
        deadline = math.inf if max_time is None else time.monotonic() + max_time
        remove_leftovers(folder)
        remove_leftovers(folder / "checkpoints")
        # A refused resume leaves a finished run finished.
        with noting_failure(folder):
            prepared = (
                resumed(run, settings)
                if resume
                else fresh(run, manifest, preset, settings, max_bad, initial)
            )
            for event in _fit(run, prepared, deadline):
                if isinstance(event, Notice | Started | EpochRecord):
                    _log(folder / "train.log", str(event))
                yield event


def _log(path: Path, text: str) -> None:
    line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}".replace("\n", "\\n")
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
            print(line, file=log)
    except OSError as error:
        raise output_error(path, error) from error


def _fit(
    run: Run, prepared: Generator[Event, None, Training | None], deadline: float
) -> Iterator[Event]:
    """Train to the end, a signal or the deadline, with regular checkpoints; then save the model."""
    training = yield from prepared
    if training is None:
        return
    fingerprint = numerics(training)

    def save() -> float:
        tensors, state = training.state()
        state["fingerprint"] = fingerprint
        save_checkpoint(run.folder / "checkpoints", tensors, state, step=training.step)
        return time.monotonic()

    def stop_if_asked() -> None:
        if run.stop:
            save()
            raise StoppedError(
                f"stopped after step {training.step} of {training.total_steps}; go on with "
                f"densesiam-seg {run.command} --resume --out {run.folder}",
                run.stop.number,
            )

    # The first checkpoint tests that the folder can be written, and makes the initial weights part of the run.
    saved = save()
    yield Started(
        run.folder, training.config, len(training.store), training.step, training.total_steps
    )
    with Records(run.folder / "metrics.jsonl") as records:
        for record in training.records():
            if isinstance(record, Progress):
                yield record
                stop_if_asked()
                continue
            kind = "step" if isinstance(record, StepRecord) else "epoch"
            records.append({"record": kind, **asdict(record)})
            yield record
            if isinstance(record, EpochRecord):
                yield from _after_epoch(run, training, record)
            elif record.step < training.step or training.step % training.steps_per_epoch == 0:
                continue  # more records of this state follow, and a stop here would lose them
            stop_if_asked()
            if time.monotonic() >= deadline:
                break
            if time.monotonic() - saved > SAVE_SECONDS:
                saved = save()
    save()
    yield _finish(run, training)


def _after_epoch(run: Run, training: Training, record: EpochRecord) -> Iterator[Event]:
    """Warn of a collapse, and draw a picture where one is asked for."""
    if record.collapsed() and record.spread is not None:
        text = (
            f"the representation is collapsing onto one direction (spread {record.spread:.3f}, healthy is near 1); "
            "lower --learning-rate or give larger batches"
        )
        yield Notice(text, warning=True)
    elif record.collapsed():
        text = (
            f"clusters are collapsing: {record.clusters_in_use} of {len(record.shares)} in use, the largest has "
            f"{100 * max(record.shares):.0f} % of the pixels; try fewer --clusters or --balance inverse"
        )
        yield Notice(text, warning=True)
    every = training.config.visualize_every
    if every and (record.epoch + 1) % every == 0:
        path = run.folder / "report" / f"epoch-{record.epoch + 1:04}.png"
        draw_clusters(training, path)
        yield Notice(f"picture: {path}")


def _finish(run: Run, training: Training) -> Trained:
    """Save the model and how the run ended."""
    facts = {
        "command": run.command,
        "version": densesiam_seg.__version__,
        "images": len(training.store),
        "steps": training.step,
        "epochs": round(training.step / training.steps_per_epoch, 2),
        "seed": training.config.seed,
    }
    model = run.folder / "model"
    segmenter_of(training, range(len(training.store)), facts).save(model)
    complete = training.step >= training.total_steps
    status: Status = "done" if complete else "stopped"
    write_status(run.folder, status, reason="" if complete else "time limit", exit_code=0)
    passed_over = asdict(training.store.manifest.passed_over)
    return Trained(run.folder, model, training.last_epoch, complete, passed_over)
