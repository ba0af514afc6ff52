"""`train`: a folder of images → a run directory with a model.

The work is a stream of events; the command line draws them, `train` runs through them.
"""

from __future__ import annotations

import time
import tomllib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import densesiam_seg
from densesiam_seg.batches import ImageStore
from densesiam_seg.checkpoint import (
    clean,
    discard_checkpoint,
    load_checkpoint,
    save_checkpoint,
    space_needed,
)
from densesiam_seg.config import Preset, TrainConfig, preset, with_settings
from densesiam_seg.devices import available_cores, make_repeatable, pick_device, pick_precision
from densesiam_seg.environment import compare_fingerprints, environment, fingerprint
from densesiam_seg.errors import (
    DenseSiamError,
    InputError,
    ModelError,
    OutputError,
    StoppedError,
    UsageError,
)
from densesiam_seg.files import output_error, remove_leftovers, replace_json, replace_text
from densesiam_seg.lock import RunLock
from densesiam_seg.loop import EpochRecord, StepRecord, Training
from densesiam_seg.manifest import Manifest
from densesiam_seg.model import Architecture, DenseSiam, build_network
from densesiam_seg.records import Records, truncate_to_step
from densesiam_seg.runs import Status, new_run_folder, read_status, require_space, write_status
from densesiam_seg.scan import scan
from densesiam_seg.segmenter import ModelCard, Segmenter, name_clusters
from densesiam_seg.signals import StopRequest, stop_requests
from densesiam_seg.weights import load_backbone

SAVE_SECONDS = 60.0
"""Wall time between checkpoints. It moves no result: any step can be resumed from."""


@dataclass(frozen=True)
class Notice:
    """A line for the user."""

    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.warning else self.text


@dataclass(frozen=True)
class Decoding:
    """Images looked at before training starts."""

    done: int
    total: int


@dataclass(frozen=True)
class Started:
    """Training is about to make its first step (or its next, after a resume)."""

    run: Path
    config: TrainConfig
    images: int
    step: int
    total_steps: int

    def __str__(self) -> str:
        begin = f" from step {self.step}" if self.step else ""
        return (
            f"training on {self.images} images, {self.config.epochs} epochs, {self.total_steps} steps{begin}, "
            f"into {self.run}"
        )


@dataclass(frozen=True)
class Trained:
    """The end: where the run and its model lie."""

    run: Path
    model: Path
    last: EpochRecord | None
    complete: bool
    """False when the time limit came first; `resume` goes on from there."""


Event = Notice | Decoding | Started | StepRecord | EpochRecord | Trained


def train(
    images: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    **options: Any,
) -> Trained:
    """Train on unlabelled images and return where the model lies; options are those of `training_events`."""
    inputs = [images] if isinstance(images, str | Path) else list(images)
    *_, last = deque(training_events(inputs, out=out, **options), maxlen=1)
    assert isinstance(last, Trained)
    return last


def training_events(
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

    `images` are files, folders, globs or lists. `settings` are fields of `TrainConfig` that differ from the preset's.
    `max_time` (seconds) ends training early with a model. `max_bad` is the share of unusable files above which the run
    is refused. With `resume` the run in `out` (else the latest one) goes on to the same final weights; `images` may
    then be empty and nothing may change. Raises a `DenseSiamError`; a stop signal raises StoppedError after saving.
    """
    if resume and (init_from or overwrite or preset):
        raise UsageError(
            "--resume goes on with the same run; leave out --init-from, --overwrite and --preset"
        )
    # Refuse wrong settings before anything is written.
    with_settings(TrainConfig(), settings)
    if not resume:
        pick_device(settings.get("device", "auto"))
        manifest = scan(images)
    folder = new_run_folder("train", Path(out) if out else None, overwrite=overwrite, resume=resume)
    with RunLock(folder), stop_requests() as stop:
        run = _Run(folder, stop, time.monotonic(), max_time)
        remove_leftovers(folder)
        clean(folder / "checkpoints")
        try:
            if resume:
                yield from _logged(folder, _resume(run, settings))
            else:
                events = _start(run, manifest, preset, settings, max_bad, init_from)
                yield from _logged(folder, events)
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


@dataclass(frozen=True)
class _Run:
    folder: Path
    stop: StopRequest
    began: float
    max_time: float | None

    def out_of_time(self) -> bool:
        return self.max_time is not None and time.monotonic() - self.began >= self.max_time

    def require_going_on(self) -> None:
        if self.stop:
            raise StoppedError(
                "stopped before the first step; nothing is lost, start again", self.stop.number
            )


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


def _start(
    run: _Run,
    manifest: Manifest,
    name: Preset | None,
    settings: Mapping[str, Any],
    max_bad: float,
    init_from: str | Path | None,
) -> Iterator[Event]:
    write_status(run.folder, "running")
    device = pick_device(settings.get("device", "auto"))
    name, base = preset(name, len(manifest), gpu=device.type == "cuda")
    config = with_settings(base, settings)
    store = ImageStore(
        manifest, 2 * config.image_size, workers=config.workers, max_pixels=config.max_pixels
    )
    yield from _decode(store, run)
    yield from _report_skipped(run.folder, store.manifest, max_bad)
    # Files that turned out bad change how many steps an epoch has.
    config = with_settings(preset(name, len(store), gpu=device.type == "cuda")[1], settings)
    replace_text(
        run.folder / "config.toml",
        f"# preset {name}, densesiam-seg {densesiam_seg.__version__}\n{config.to_toml()}",
    )
    replace_json(run.folder / "dataset.json", store.manifest.to_dict())
    yield Notice(f"preset {name}: {_summary(config)}")

    training = _build(config, store, device)
    if init_from:
        yield Notice(_take_over(training.network, init_from))
    else:
        yield Notice(
            load_backbone(training.network.encoder.backbone, config.backbone, config.weights)
        )
    facts = environment()
    replace_json(run.folder / "env.json", {**facts, "fingerprint": _fingerprint(facts, training)})
    require_space(run.folder, space_needed(training.state()[0]))
    yield from _fit(run, training)


def _resume(run: _Run, settings: Mapping[str, Any]) -> Iterator[Event]:
    config, manifest = _read_run(run.folder)
    changed = [name for name, value in settings.items() if getattr(config, name) != value]
    if changed:
        raise UsageError(
            f"--resume: {changed[0]} is {getattr(config, changed[0])!r} in {run.folder}; a resumed run keeps its "
            "settings, so leave that option out or start a new run with --init-from"
        )
    if read_status(run.folder).get("status") == "done":
        yield Notice("this run had finished; nothing to do")
        yield Trained(run.folder, run.folder / "model", None, complete=True)
        return
    edited = manifest.changed()
    if edited:
        raise ModelError(
            f"{manifest.root}: {len(edited)} of {len(manifest)} training images were changed or removed since the run "
            f"began, first {edited[0]}; put them back, or start a new run with --init-from {run.folder}"
        )
    write_status(run.folder, "running")
    store = ImageStore(
        manifest, 2 * config.image_size, workers=config.workers, max_pixels=config.max_pixels
    )
    yield from _decode(store, run)
    if len(store) != len(manifest):
        raise ModelError(
            f"{store.manifest.skipped[-1].path}: was read before and cannot be now; put it back"
        )
    training = _build(config, store, pick_device(config.device))
    loaded = load_checkpoint(run.folder / "checkpoints")
    if loaded is None:
        raise ModelError(
            f"{run.folder}: stopped before its first checkpoint; start it again with --overwrite"
        )
    for path, why in loaded.rejected:
        yield Notice(f"{path}: damaged checkpoint passed over and deleted ({why})", warning=True)
        discard_checkpoint(path)
    _require_fit(training, loaded.checkpoint.tensors, loaded.path)
    training.restore(loaded.checkpoint.tensors, loaded.checkpoint.state)
    yield from _warn_of_other_bits(loaded.checkpoint.state, training)
    truncate_to_step(run.folder / "metrics.jsonl", training.step)
    yield from _fit(run, training)


def _fit(run: _Run, training: Training) -> Iterator[Event]:
    """Train to the end, a signal or the time limit; checkpoints as time goes by, the model at the end."""
    checkpoints = run.folder / "checkpoints"
    facts = _fingerprint(environment(), training)

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
            kind = "step" if isinstance(record, StepRecord) else "epoch"
            records.append({"record": kind, **asdict(record)})
            yield record
            if isinstance(record, EpochRecord):
                if record.collapsed():
                    yield Notice(_collapse(record), warning=True)
            elif training.step % training.steps_per_epoch == 0:
                continue  # the epoch's own record comes next, and would be lost by a stop in between
            if run.stop:
                save()
                raise StoppedError(
                    f"stopped after step {training.step} of {training.total_steps}; go on with "
                    f"densesiam-seg train --resume --out {run.folder}",
                    run.stop.number,
                )
            if run.out_of_time():
                break
            if time.monotonic() - saved > SAVE_SECONDS:
                saved = save()
    save()
    complete = training.step >= training.total_steps
    shares = training.last_epoch.shares if training.last_epoch else None
    config = training.config
    card = ModelCard(
        training.network.architecture,
        config.image_size,
        clusters=config.clusters,
        training={
            "version": densesiam_seg.__version__,
            "images": len(training.store),
            "steps": training.step,
            "epochs": round(training.step / training.steps_per_epoch, 2),
            "seed": config.seed,
        },
    )
    clusters = name_clusters(config.clusters, shares)
    Segmenter(training.network, card, clusters, device=str(training.device)).save(
        run.folder / "model"
    )
    write_status(
        run.folder,
        "done" if complete else "stopped",
        reason="" if complete else "time limit",
        exit_code=0,
    )
    yield Trained(run.folder, run.folder / "model", training.last_epoch, complete)


def _decode(store: ImageStore, run: _Run) -> Iterator[Event]:
    total = len(store)
    for done in store.prepare():
        run.require_going_on()
        yield Decoding(done, total)


def _report_skipped(folder: Path, manifest: Manifest, max_bad: float) -> Iterator[Event]:
    """Write the list of skipped files and tell of it. Raises InputError when too few images are left."""
    skipped = manifest.skipped
    with Records(folder / "skipped.jsonl") as records:
        for item in skipped:
            records.append({"path": item.path, "reason": item.reason, "message": item.message})
    if not skipped:
        return
    for item in skipped[:10]:
        yield Notice(f"skipped ({item.reason}): {item.message}", warning=True)
    total = len(skipped) + len(manifest)
    yield Notice(
        f"{len(skipped)} of {total} files were skipped; all are listed in {folder / 'skipped.jsonl'}",
        warning=True,
    )
    if not len(manifest) or len(skipped) / total > max_bad:
        raise InputError(
            f"{manifest.root}: {len(skipped)} of {total} files cannot be used (first: {skipped[0].message}); "
            + ("give at least one image" if not len(manifest) else "mend them or raise --max-bad")
        )


def _build(config: TrainConfig, store: ImageStore, device: torch.device) -> Training:
    torch.set_num_threads(config.threads or available_cores())
    make_repeatable(device)
    architecture = Architecture(
        config.backbone, config.channels, config.clusters, config.over_clusters
    )
    network = build_network(architecture, config.seed)
    return Training(network, config, store, device, pick_precision(config.precision, device))


def _fingerprint(facts: Mapping[str, Any], training: Training) -> dict[str, Any]:
    device, precision = training.device.type, str(training.precision).removeprefix("torch.")
    return fingerprint(facts, device=device, precision=precision)


def _warn_of_other_bits(state: Mapping[str, Any], training: Training) -> Iterator[Event]:
    differences = compare_fingerprints(state["fingerprint"], _fingerprint(environment(), training))
    if differences:
        yield Notice(f"resume is not bit-exact: {', '.join(differences)}", warning=True)


def _require_fit(training: Training, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, value in training.network.state_dict().items():
        found = tensors.get(f"network.{name}")
        if found is None or found.shape != value.shape:
            raise ModelError(
                f"{path}: {name} does not fit the run's config.toml; restore that file"
            )


def _read_run(folder: Path) -> tuple[TrainConfig, Manifest]:
    """Settings and images of a run that is to go on. Raises ModelError when they are not there or not sound."""
    import json

    try:
        config = TrainConfig(**tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")))
        manifest = Manifest.from_dict(
            json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        )
    except (OSError, ValueError, TypeError, KeyError, DenseSiamError) as error:
        raise ModelError(
            f"{folder}: no run to resume here ({error}); start a new one without --resume"
        ) from error
    return config, manifest


def _take_over(network: DenseSiam, path: str | Path) -> str:
    """Copy every tensor of a trained model that fits; returns a line that says what did not."""
    found = Segmenter.load(path, device="cpu").network
    if found.architecture.backbone != network.architecture.backbone:
        raise ModelError(
            f"--init-from {path}: its backbone is {found.architecture.backbone}, not {network.architecture.backbone}; "
            f"give --backbone {found.architecture.backbone}"
        )
    target, source = network.state_dict(), found.state_dict()
    other = sorted(
        {name.split(".")[0] for name in target if target[name].shape != source[name].shape}
    )
    for name, value in target.items():
        if name.split(".")[0] not in other:
            value.copy_(source[name])
    return f"initial weights: {path}" + (f" (new: {', '.join(other)})" if other else "")


def _collapse(record: EpochRecord) -> str:
    return (
        f"clusters are collapsing: {record.clusters_in_use} of {len(record.shares)} in use, the largest has "
        f"{100 * max(record.shares):.0f} % of the pixels; try fewer --clusters or --balance inverse"
    )


def _summary(config: TrainConfig) -> str:
    shown = ("image_size", "batch_size", "epochs", "clusters", "backbone", "seed")
    return ", ".join(
        f"{field.name} {getattr(config, field.name)}"
        for field in fields(config)
        if field.name in shown
    )
