"""A run of any recipe: from images to a run directory with a model.

The work is a stream of events; the command line draws them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor

import densesiam_seg
from densesiam_seg.config import with_settings
from densesiam_seg.errors import (
    DenseSiamError,
    InputError,
    OutputError,
    StoppedError,
    UsageError,
)
from densesiam_seg.events import EpochRecord, Event, Notice, Progress, Started, StepRecord, Trained
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.centroids import fit_readout
from densesiam_seg.inference.segmenter import ModelCard, Segmenter, name_clusters
from densesiam_seg.inference.visualize import spread, training_picture
from densesiam_seg.io.devices import pick_device
from densesiam_seg.io.files import make_folder, output_error, remove_leftovers, replace_file
from densesiam_seg.io.lock import RunLock
from densesiam_seg.io.records import Records
from densesiam_seg.io.run_directory import Status, new_run_folder, read_status, write_status
from densesiam_seg.io.signals import stop_requests
from densesiam_seg.network.encoder import require_backbone
from densesiam_seg.pictures.masks import encode_png
from densesiam_seg.presets import Preset
from densesiam_seg.training.checkpoint import (
    clean,
    save_checkpoint,
)
from densesiam_seg.training.loop import Training
from densesiam_seg.training.setup import Recipe, Run, fresh, numerics, resumed
from densesiam_seg.training.weights import require_source

PICTURES = 4
"""Images in a picture of a run under way."""
SAVE_SECONDS = 60.0
"""Wall time between checkpoints. It moves no result: any step can be resumed from."""


def run_events(
    recipe: Recipe,
    images: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    preset: Preset | None = None,
    max_time: float | None = None,
    max_bad: float = 1.0,
    init_from: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Iterator[Event]:
    """Train in a run directory, one event at a time; the last event is `Trained`.

    `images` are files, folders, globs or lists. `settings` are fields of the recipe's config that differ from the
    preset's. `max_time` (seconds) ends training early with a model. `max_bad` is the share of unusable files above
    which the run is refused. With `resume` the run in `out` (else the latest one) goes on to the same final weights;
    `images` may then be empty and nothing may change. Raises a `DenseSiamError`; a stop signal raises StoppedError
    after saving.
    """
    if resume and (init_from or overwrite or preset):
        raise UsageError(
            "--resume goes on with the same run; leave out --init-from, --overwrite and --preset"
        )
    # Refuse wrong settings before anything is written; the number of images does not matter for that.
    checked = with_settings(recipe.preset(preset, 0, False, settings)[1], settings)
    if not resume:
        pick_device(settings.get("device", "auto"))
        require_backbone(checked.backbone, checked.image_size)
        require_source(settings.get("weights", "auto"))
        initial = (
            (Segmenter.load(init_from, device="cpu").network, str(init_from)) if init_from else None
        )
        manifest = scan(images)
    folder = new_run_folder(
        recipe.command, Path(out) if out else None, overwrite=overwrite, resume=resume
    )
    with RunLock(folder), stop_requests() as stop:
        run = Run(recipe, folder, stop, time.monotonic(), max_time)
        remove_leftovers(folder)
        clean(folder / "checkpoints")
        try:
            prepared = (
                resumed(run, settings)
                if resume
                else fresh(run, manifest, preset, settings, max_bad, initial)
            )
            yield from _logged(folder, _train(run, prepared))
        except BaseException as error:
            status: Status = "stopped" if isinstance(error, StoppedError) else "failed"
            code = error.exit_code if isinstance(error, DenseSiamError) else 1
            # A refused resume leaves a finished run finished. On a full disk the status cannot be written either; the
            # first error is the one to report.
            if read_status(folder).get("status") != "done":
                with suppress(OutputError):
                    write_status(
                        folder, status, reason=str(error) or type(error).__name__, exit_code=code
                    )
            raise


def _logged(folder: Path, events: Iterator[Event]) -> Iterator[Event]:
    """The same events; those that a person would read later also go to `train.log`."""
    for event in events:
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


def _train(run: Run, prepared: Generator[Event, None, Training | None]) -> Iterator[Event]:
    training = yield from prepared
    if training is not None:
        yield from _fit(run, training)


def _fit(run: Run, training: Training) -> Iterator[Event]:
    """Train to the end, a signal or the time limit; checkpoints as time goes by, the model at the end."""
    checkpoints = run.folder / "checkpoints"
    facts = numerics(training)

    def save() -> float:
        tensors, state = training.state()
        save_checkpoint(checkpoints, tensors, {**state, "fingerprint": facts}, step=training.step)
        return time.monotonic()

    # The first checkpoint shows that the place can be written, and makes the initial weights part of the run.
    saved = save()
    yield Started(
        run.folder, training.config, len(training.store), training.step, training.total_steps
    )
    with Records(run.folder / "metrics.jsonl") as records:
        for record in training.records():
            if isinstance(record, Progress):
                yield record
                if run.stop:
                    save()
                    raise _stopped(run, training)
                continue
            kind = "step" if isinstance(record, StepRecord) else "epoch"
            records.append({"record": kind, **asdict(record)})
            yield record
            if isinstance(record, EpochRecord):
                yield from _after_epoch(run, training, record)
            elif record.step < training.step or training.step % training.steps_per_epoch == 0:
                continue  # further records of this state come next, and would be lost by a stop in between
            if run.stop:
                save()
                raise _stopped(run, training)
            if run.out_of_time():
                break
            if time.monotonic() - saved > SAVE_SECONDS:
                saved = save()
    save()
    complete = training.step >= training.total_steps
    facts = {
        "command": run.recipe.command,
        "version": densesiam_seg.__version__,
        "images": len(training.store),
        "steps": training.step,
        "epochs": round(training.step / training.steps_per_epoch, 2),
        "seed": training.config.seed,
    }
    segmenter = _segmenter(training, range(len(training.store)), facts)
    segmenter.save(run.folder / "model")
    write_status(
        run.folder,
        "done" if complete else "stopped",
        reason="" if complete else "time limit",
        exit_code=0,
    )
    yield Trained(run.folder, run.folder / "model", training.last_epoch, complete)


def _stopped(run: Run, training: Training) -> StoppedError:
    return StoppedError(
        f"stopped after step {training.step} of {training.total_steps}; go on with "
        f"densesiam-seg {run.recipe.command} --resume --out {run.folder}",
        run.stop.number,
    )


def _after_epoch(run: Run, training: Training, record: EpochRecord) -> Iterator[Event]:
    """Warn of a collapse, refuse views that never meet, and draw a picture where one is asked for."""
    if record.disjoint == training.steps_per_epoch * training.config.batch_size:
        raise InputError(
            f"epoch {record.epoch + 1}: no two views of any image overlap, so nothing corresponds; "
            "raise --min-scale or --max-scale"
        )
    if record.collapsed():
        yield Notice(_collapse(record), warning=True)
    every = training.config.visualize_every
    if every and (record.epoch + 1) % every == 0:
        yield Notice(f"picture: {_draw(run, training, record.epoch + 1)}")


def _draw(run: Run, training: Training, epoch: int) -> Path:
    """Write `report/epoch-0007.png`: a few images with their clusters as the network sees them now."""
    chosen = spread(len(training.store), PICTURES)
    batch = next(training.store.batches([tuple(chosen)]))
    try:
        picture = training_picture(_segmenter(training, chosen), batch.images)
    finally:
        # A segmenter puts its network into inference form.
        training.network.train()
    folder = make_folder(run.folder / "report")
    path = folder / f"epoch-{epoch:04}.png"
    replace_file(path, encode_png(picture), sync=False)
    return path


def _segmenter(
    training: Training, images: Sequence[int], facts: Mapping[str, Any] | None = None
) -> Segmenter:
    """The network as the head reads it that learned clusters, else by a fresh k-means of `images`' features.

    `facts` are what its card says of the training.
    """
    config, store = training.config, training.store
    architecture = training.network.architecture
    clusters = architecture.clusters
    card = ModelCard(
        architecture,
        config.image_size,
        clusters=clusters,
        refine="pamr" if architecture.mixture else "none",
        training=dict(facts or {}),
    )
    shares = training.last_epoch.shares if training.last_epoch else None
    segmenter = Segmenter(
        training.network,
        card,
        name_clusters(clusters, shares or None),
        device=str(training.device),
        precision=config.precision,
    )
    if config.learns_clusters():
        return segmenter

    def squares() -> Iterator[Tensor]:
        for batch in store.batches([(index,) for index in images]):
            yield batch.images[0]

    return fit_readout(segmenter, squares, len(images), clusters, seed=config.seed)


def _collapse(record: EpochRecord) -> str:
    if record.spread is not None:
        return (
            f"the representation is collapsing onto one direction (spread {record.spread:.3f}, healthy is near 1); "
            "lower --learning-rate or give larger batches"
        )
    return (
        f"clusters are collapsing: {record.clusters_in_use} of {len(record.shares)} in use, the largest has "
        f"{100 * max(record.shares):.0f} % of the pixels; try fewer --clusters or --balance inverse"
    )
