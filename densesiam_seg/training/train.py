"""The use cases `train` and `pretrain`: a folder of images → a run directory with a model.

A run is a stream of events: its settings and place are checked, `setup` makes a `Training` ready, `loop` trains it, and
the model is saved.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

import densesiam_seg
from densesiam_seg.backbones import WORDS
from densesiam_seg.config import TrainConfig, spelled_out
from densesiam_seg.errors import StoppedError, UsageError, WorkerError, one_line
from densesiam_seg.events import EpochRecord, Event, Notice, Progress, Started, StepRecord, Trained
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import UnreadError
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.suggesting import Suggested, suggestion_events
from densesiam_seg.inference.visualize import spread
from densesiam_seg.io.devices import pick_device
from densesiam_seg.io.files import output_error, remove_leftovers
from densesiam_seg.io.lock import run_lock
from densesiam_seg.io.records import Records
from densesiam_seg.io.run_directory import (
    Status,
    is_free,
    new_run_folder,
    noting_failure,
    require_space,
    write_status,
)
from densesiam_seg.io.signals import StopRequest, stop_requests
from densesiam_seg.naming.clusters import CLUSTERS, carried_over
from densesiam_seg.naming.cuts import cut_to
from densesiam_seg.naming.edits import suggest
from densesiam_seg.network.encoder import require_backbone
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.peers.group import Group, joined
from densesiam_seg.presets import Preset
from densesiam_seg.training.checkpoint import KEEP, save_checkpoint, space_needed
from densesiam_seg.training.loop import Training
from densesiam_seg.training.recipes import CONFIGS, Command, begun, choose_settings
from densesiam_seg.training.request import Request, anywhere, repeatable, require_repeated
from densesiam_seg.training.setup import (
    Beginning,
    Run,
    all_read,
    forget,
    fresh,
    has_begun,
    numerics,
    resumed,
)
from densesiam_seg.training.snapshot import draw_clusters, segmenter_of
from densesiam_seg.training.weights import load_network, require_source

Images = str | Path | Sequence[str | Path]
"""Files, folders, globs or lists of images."""

_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
"""A pipe in the log's place would wait for a reader."""
READOUT_IMAGES = 10_000
"""Of the set, evenly spread, that a read-out is fitted to where no clusters were learned."""
SAVE_SECONDS = 60.0
"""Wall time between checkpoints unless another is asked for. A run can be resumed from any step to the same result."""


@dataclass(frozen=True)
class Rhythm:
    """When checkpoints are written: every so many seconds (`SAVE_SECONDS`), or instead every so many steps."""

    seconds: float | None
    steps: int | None

    def __post_init__(self) -> None:
        positive = (self.seconds is None or self.seconds > 0) and (
            self.steps is None or self.steps > 0
        )
        if not positive or None not in (self.seconds, self.steps):
            raise UsageError(
                "--checkpoint-every: give a positive number of steps, or a time such as 5m"
            )

    def due(self, seconds: float, steps: int) -> bool:
        """Whether it is time, so many seconds and steps after the last checkpoint."""
        if self.steps is not None:
            return steps >= self.steps
        return seconds >= (SAVE_SECONDS if self.seconds is None else self.seconds)


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
    accept_data_change: bool = False,
    checkpoint_every: float | None = None,
    checkpoint_steps: int | None = None,
    **settings: Any,
) -> Iterator[Event]:
    """Train in a run directory, one event at a time; the last event is `Trained`.

    `settings` are fields of the command's config that differ from the preset's. `max_time` (seconds) ends training
    early with a model. `max_bad` is the share of unusable files above which the run is refused. `follow_links` reads
    folders behind links too. A checkpoint is written every `checkpoint_every` seconds (a minute), or instead every
    `checkpoint_steps` steps.

    Processes that a launcher started (`peers.group`) are one run, whose first one writes; all get the events.

    With `resume` the run in `out` (else the latest one) goes on to the same final weights, and no setting may change
    but those of the machine; `images` may then be empty, or begin the run where `out` holds nothing yet. Images that
    changed since are refused unless `accept_data_change`: then their new contents are used, and those that were added
    are left out.
    Raises a DenseSiamError; a stop signal raises StoppedError after saving.
    """
    inputs = [images] if isinstance(images, str | Path) else images
    if resume and (overwrite or ((init_from or preset) and not inputs)):
        raise UsageError(
            "--resume goes on with the same run; leave out --init-from, --overwrite and --preset"
        )
    rhythm = Rhythm(checkpoint_every, checkpoint_steps)
    settings = dict(anywhere(spelled_out(CONFIGS[command], settings)))
    place = Path(out) if out else None
    with joined(str(settings.get("device", "auto"))) as group:
        if place is None and not group.alone:
            raise UsageError(
                "--out: several processes need one folder that all of them see; name one"
            )
        request = Request.of(
            inputs, settings, init_from, preset=preset, max_bad=max_bad, follow_links=follow_links
        )
        goes_on = group.by_first(
            lambda: resume and (not inputs or place is None or not is_free(place))
        )
        if goes_on:
            # Wrong settings are refused before anything is written; the number of images does not matter for that.
            choose_settings(command, None, 0, False, settings)
            beginning = None
        else:
            beginning = _beginning(command, request, inputs, place, group)
            if overwrite and place is not None:
                _require_kept(place, beginning.given.get("weights"))
        folder = group.by_first(
            lambda: new_run_folder(
                command,
                place,
                overwrite=overwrite,
                resume=goes_on,
                request=None if goes_on else request.to_dict(),
            )
        )
        with _held(folder, group) as stop:
            deadline = math.inf if max_time is None else time.monotonic() + max_time

            def events(run: Run) -> Iterator[Event]:
                prepared = (
                    fresh(run, beginning)
                    if beginning
                    else _going_on(run, request, settings, accept_data_change=accept_data_change)
                )
                return _fit(run, prepared, deadline, rhythm)

            for event in _beginning_again(Run(command, folder, stop, group), events):
                if group.first and isinstance(event, Notice | Started | EpochRecord):
                    _log(folder / "train.log", str(event))
                yield event


@contextmanager
def _held(folder: Path, group: Group) -> Iterator[StopRequest]:
    """The folder of a run, which its first process holds and tidies up, and where that notes how the run ends."""
    if not group.first:
        with stop_requests() as stop:
            yield stop
        return
    with run_lock(folder), stop_requests() as stop:
        remove_leftovers(folder)
        remove_leftovers(folder / "checkpoints")
        # A refused resume leaves a finished run finished.
        with noting_failure(folder):
            try:
                yield stop
            except WorkerError as error:
                # Where all were told to stop the others may have left before.
                stop.require_none(f"stopped; {error}")
                raise


def _going_on(
    run: Run, again: Request, settings: Mapping[str, Any], *, accept_data_change: bool
) -> Generator[Event, None, Training | None]:
    """The run in its folder from its last checkpoint, or from the beginning where it has none.

    What is asked for `again` must be what the run was begun with.
    """
    run.group.by_first(lambda: require_repeated(run.folder, again))
    if run.group.by_first(lambda: has_begun(run.folder)):
        return resumed(run, settings, accept_data_change=accept_data_change)
    request = run.group.by_first(lambda: repeatable(run.folder, run.command, settings))
    return fresh(run, _beginning(run.command, request, request.images, run.folder, run.group))


def _beginning_again(run: Run, events: Callable[[Run], Iterator[Event]]) -> Iterator[Event]:
    """The `events` of a run; where training meets a bad file, those of the run without it follow."""
    try:
        yield from events(run)
        return
    except UnreadError as error:
        bad = str(error)
    # Not in the block above, which keeps the network for its traceback.
    yield Notice(f"{bad}; training begins again when all images are read", warning=True)
    run.group.by_first(lambda: forget(run.folder))
    yield from events(replace(run, reads_first=True))


def _beginning(
    command: Command,
    request: Request,
    inputs: Sequence[str | Path],
    out: Path | None,
    group: Group,
) -> Beginning:
    """What a run begins with, checked before anything is written; `inputs` are the request's as the user wrote them."""
    settings, init_from = request.settings, request.init_from
    given, learned = (
        (settings, False) if init_from else begun(command, request.preset, settings, None)
    )
    _, checked = choose_settings(command, request.preset, 0, False, given, learned=learned)

    def ready() -> tuple[DenseSiam, str] | None:
        """What depends on the machine, and what it has to begin with."""
        pick_device(checked.device)
        require_backbone(checked.backbone, checked.image_size)
        require_source(checked.weights)
        return (load_network(Path(init_from)), init_from) if init_from else None

    initial = group.by_each(ready)
    pages = checked.page == "all"
    manifest = group.by_first(
        lambda: scan(inputs, follow_links=request.follow_links, out=out, pages=pages)
    )
    return Beginning(manifest, request.preset, settings, request.max_bad, initial)


def _require_kept(out: Path, weights: str | None) -> None:
    """Refuse weights that `--overwrite` would delete before they are read. Raises UsageError."""
    if weights is None or weights in WORDS:
        return
    source, folder = Path(weights).resolve(), out.resolve()
    if source == folder or folder in source.parents:
        raise UsageError(
            f"--weights {weights}: lies in {out}, which --overwrite empties first; "
            "choose another --out or move the weights away"
        )


def _log(path: Path, text: str) -> None:
    line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {one_line(text)}"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_WAIT, 0o666)
        with os.fdopen(handle, "a", encoding="utf-8", errors="backslashreplace") as log:
            print(line, file=log)
    except OSError as error:
        raise output_error(path, error) from error


def _fit(
    run: Run,
    prepared: Generator[Event, None, Training | None],
    deadline: float,
    rhythm: Rhythm,
) -> Iterator[Event]:
    """Train to the end, a signal or the deadline, with regular checkpoints; then save the model."""
    training = yield from prepared
    if training is None:
        return
    group = run.group
    fingerprint = numerics(training)

    def save() -> tuple[float, int]:
        tensors, state = training.state()
        state["fingerprint"] = fingerprint
        if group.first:
            save_checkpoint(run.folder / "checkpoints", tensors, state, step=training.step)
        return time.monotonic(), training.step

    def stop_if_asked(signal_number: int) -> None:
        if signal_number:
            save()
            stopped = StoppedError(
                f"stopped after step {training.step} of {training.total_steps}; go on with "
                f"densesiam-seg {run.command} --resume --out {run.folder}",
                signal_number,
            )
            stopped.told = not group.first
            raise stopped

    tensors, _ = training.state()
    if group.first:
        kept = KEEP if has_begun(run.folder) else 0
        require_space(run.folder, space_needed(tensors, kept))
    # The first checkpoint tests that the folder can be written, and makes the initial weights part of the run.
    saved = save()
    yield Started(
        run.folder, training.config, len(training.store), training.step, training.total_steps
    )
    with Records(run.folder / "metrics.jsonl") if group.first else nullcontext() as records:
        for record in training.records():
            if isinstance(record, Progress):
                yield record
                if group.alone:  # else not all of them may be here
                    stop_if_asked(run.stop.number)
                continue
            if records is not None:
                kind = "step" if isinstance(record, StepRecord) else "epoch"
                records.append({"record": kind, **asdict(record)})
            yield record
            if isinstance(record, EpochRecord):
                yield from _after_epoch(run, training, record)
            elif record.step < training.step or training.step % training.steps_per_epoch == 0:
                continue  # more records of this state follow, and a stop here would lose them
            now = time.monotonic()
            due = rhythm.due(now - saved[0], training.step - saved[1])
            asked, late, due_somewhere = group.largest([run.stop.number, now >= deadline, due])
            stop_if_asked(asked)
            if late:
                break
            if due_somewhere:
                saved = save()
    save()
    yield from _finish(run, training)


def _after_epoch(run: Run, training: Training, record: EpochRecord) -> Iterator[Event]:
    """Warn of a collapse, and draw a picture where one is asked for."""
    if record.epoch == 0:
        yield from all_read(run, training.store)
    if record.collapsed() and record.spread is not None:
        text = (
            f"the representation is collapsing onto one direction (spread {record.spread:.3f}, healthy is near 1); "
            "lower --learning-rate or give larger batches"
        )
        yield Notice(text, warning=True)
    elif record.collapsed(spare=getattr(training.config, "choose_clusters", False)):
        text = (
            f"clusters are collapsing: {record.clusters_in_use} of {len(record.shares)} in use, the largest has "
            f"{100 * max(record.shares):.0f} % of the pixels; try fewer --clusters or --balance inverse"
        )
        yield Notice(text, warning=True)
    every = training.config.visualize_every
    if run.group.first and every and (record.epoch + 1) % every == 0:
        path = run.folder / "report" / f"epoch-{record.epoch + 1:04}.png"
        draw_clusters(training, path)
        yield Notice(f"picture: {path}")


def _finish(run: Run, training: Training) -> Iterator[Event]:
    """Save the model and how the run ended; the last event is `Trained`, when all that is done."""
    facts = {
        "command": run.command,
        "version": densesiam_seg.__version__,
        "images": len(training.store),
        "steps": training.step,
        "epochs": round(training.step / training.steps_per_epoch, 2),
        "seed": training.config.seed,
    }
    model = run.folder / "model"
    # Not those that a time limit kept from being read: a bad file among them would begin the run again.
    read = training.store.read()
    images = [read[place] for place in spread(len(read), READOUT_IMAGES)]
    segmenter = segmenter_of(training, images, facts, group=run.group)
    if run.group.first:
        yield from _saved(run, training, segmenter)
    run.group.gathered(None, patient=True)
    passed_over = asdict(training.store.manifest.passed_over)
    complete = training.step >= training.total_steps
    yield Trained(run.folder, model, training.last_epoch, complete, passed_over)


def _saved(run: Run, training: Training, segmenter: Segmenter) -> Iterator[Event]:
    """Save the model, and choose its number of clusters where that is asked for."""
    model = run.folder / "model"
    chooses = isinstance(training.config, TrainConfig) and training.config.choose_clusters
    if training.config.learns_clusters():
        # A run that stopped early has a model, whose clusters may have got names since.
        segmenter.clusters = carried_over(segmenter.clusters, model / CLUSTERS, merges=not chooses)
    segmenter.save(model)
    if chooses:
        yield from _choose_clusters(run, training, segmenter)
    complete = training.step >= training.total_steps
    status: Status = "done" if complete else "stopped"
    write_status(run.folder, status, reason="" if complete else "time limit", exit_code=0)


def _choose_clusters(run: Run, training: Training, segmenter: Segmenter) -> Iterator[Event]:
    """Merge the clusters of the saved model to as many as are recommended; what is recommended is kept there."""
    events = suggestion_events(segmenter, training.store.manifest, seed=training.config.seed)
    for event in events:
        if isinstance(event, Suggested):
            model, found = run.folder / "model", event.best
            suggest(model, found.to_dict())
            cut_to(model, found.chosen, np.array(found.tree))
            yield Notice(
                f"{found.chosen} of {segmenter.card.clusters} clusters are recommended and shown; another number: "
                f"densesiam-seg clusters cut {run.folder} -k N, all: clusters undo {run.folder}"
            )
        else:
            yield event
        if run.stop:
            raise StoppedError(
                "stopped while the number of clusters was sought; go on with "
                f"densesiam-seg {run.command} --resume --out {run.folder}",
                run.stop.number,
            )
