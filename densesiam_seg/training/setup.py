"""A run directory → a `Training` ready for its next step: a fresh one, or one that goes on."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import densesiam_seg
from densesiam_seg.config import RunConfig, TrainConfig, with_settings
from densesiam_seg.errors import DenseSiamError, InputError, ModelError, StoppedError, UsageError
from densesiam_seg.events import Event, Notice, Progress, Trained
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.images.store import ImageStore, used_range
from densesiam_seg.io.devices import available_cores, make_repeatable, pick_device, pick_precision
from densesiam_seg.io.environment import compare_fingerprints, environment, fingerprint
from densesiam_seg.io.files import replace_json, replace_text
from densesiam_seg.io.records import Records, truncate_to_step
from densesiam_seg.io.run_directory import read_status, require_space, write_status
from densesiam_seg.io.signals import StopRequest
from densesiam_seg.methods.densesiam import DenseSiamMethod
from densesiam_seg.methods.stage_cache import StageCache
from densesiam_seg.network.encoder import PYRAMID_ZOOM
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.presets import Preset
from densesiam_seg.training.checkpoint import discard_checkpoint, load_checkpoint, space_needed
from densesiam_seg.training.loop import Training
from densesiam_seg.training.recipes import (
    CONFIGS,
    FITS,
    Command,
    begun,
    build_method,
    choose_settings,
)
from densesiam_seg.training.weights import SCRATCH, copy_network, load_encoder

SUMMARY = (
    *("method", "prior", "features", "correspondence", "image_size", "batch_size", "epochs"),
    *("clusters", "categories", "backbone", "seed"),
)
"""The settings in the first line of a run's output."""


@dataclass(frozen=True)
class Run:
    """A run under way: its command, its folder, and a signal that may end it early."""

    command: Command
    folder: Path
    stop: StopRequest

    def require_going_on(self) -> None:
        if self.stop:
            raise StoppedError(
                "stopped before the first step; nothing is lost: give the same command again, "
                "with --overwrite if it named --out",
                self.stop.number,
            )


def fresh(
    run: Run,
    manifest: Manifest,
    preset: Preset | None,
    given: Mapping[str, Any],
    max_bad: float,
    initial: tuple[DenseSiam, str] | None,
) -> Generator[Event, None, Training]:
    """Decode the images, settle the settings and build the network; everything is written into the run's folder.

    `initial` is a trained network to take the weights from, with the path it came from.
    """
    write_status(run.folder, "running")
    passed_over = manifest.passed_over
    if str(passed_over):
        yield Notice(f"passed over: {passed_over}", warning=passed_over.doubtful)
    device = pick_device(given.get("device", "auto"))
    gpu = device.type == "cuda"
    name, _ = choose_settings(run.command, preset, len(manifest), gpu, given)
    source = initial[0].architecture if initial else None
    given, learned = begun(run.command, name, given, source)
    _, config = choose_settings(run.command, name, len(manifest), gpu, given, learned=learned)
    store = _store(run.command, manifest, config, None)
    if config.stretch:
        used = used_range(manifest, store.decoding)
        yield Notice(f"stretch: {used[0]:.4g} to {used[1]:.4g} of the range become 0 and 255")
        store = _store(run.command, manifest, config, used)
    yield from _decode(store, run)
    yield from _report_skipped(run.folder, store.manifest, max_bad)
    # Skipped files change the number of steps of an epoch.
    _, config = choose_settings(run.command, name, len(store), gpu, given, learned=learned)
    training = _build(config, store, device)
    if initial:
        weights_line = copy_network(training.network, *initial)
    else:
        weights_line = load_encoder(training.network.encoder, config.backbone, config.weights)
    scratch = weights_line.endswith(SCRATCH)
    if not (learned or scratch or initial):
        # Only now is it known that `auto` fetched weights.
        _, config = choose_settings(run.command, name, len(store), gpu, given, learned=True)
        if config != training.config:
            loaded = training.network
            training = _build(config, store, device)
            copy_network(training.network, loaded, "")
    replace_text(
        run.folder / "config.toml",
        f"# preset {name}, densesiam-seg {densesiam_seg.__version__}\n{config.to_toml()}",
    )
    stretch = {"stretch": list(store.decoding.stretch)} if store.decoding.stretch else {}
    replace_json(run.folder / "dataset.json", store.manifest.to_dict() | stretch)
    replace_json(run.folder / "env.json", {**environment(), "fingerprint": numerics(training)})
    summary = [f"{each} {getattr(config, each)}" for each in SUMMARY if hasattr(config, each)]
    yield Notice(f"preset {name}: {', '.join(summary)}")
    yield Notice(weights_line)
    if config.freeze and scratch:
        yield Notice("the frozen backbone is untrained; give it --weights", warning=True)
    require_space(run.folder, space_needed(training.state()[0]))
    yield from _cache_stages(training, run)
    return training


def resumed(run: Run, given: Mapping[str, Any]) -> Generator[Event, None, Training | None]:
    """The run in its folder, as its last sound checkpoint left it; None when it had finished.

    Raises UsageError for settings `given` that are not the run's, and ModelError for images or checkpoints that are no
    longer what they were.
    """
    config, manifest, stretch = _read_run(run)
    for name, value in given.items():
        if getattr(config, name) != value:
            raise UsageError(
                f"--resume: {name} is {getattr(config, name)!r} in {run.folder}; a resumed run keeps its settings, so "
                "leave that option out or start a new run with --init-from"
            )
    if read_status(run.folder).get("status") == "done":
        yield Notice("this run had finished; nothing to do")
        yield Trained(run.folder, run.folder / "model", None, True, asdict(manifest.passed_over))
        return None
    edited = manifest.changed()
    if edited:
        raise ModelError(
            f"{manifest.root}: {len(edited)} of {len(manifest)} training images were changed or removed since the run "
            f"began, first {edited[0]}; put them back, or start a new run with --init-from {run.folder}"
        )
    write_status(run.folder, "running")
    store = _store(run.command, manifest, config, stretch)
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
    _require_fit(training, loaded.tensors, loaded.path)
    training.restore(loaded.tensors, loaded.state)
    differences = compare_fingerprints(loaded.state["fingerprint"], numerics(training))
    if differences:
        yield Notice(f"resume is not bit-exact: {', '.join(differences)}", warning=True)
    truncate_to_step(run.folder / "metrics.jsonl", training.step)
    yield from _cache_stages(training, run)
    return training


def numerics(training: Training) -> dict[str, Any]:
    """What the last bits of the run's results depend on."""
    precision = str(training.precision).removeprefix("torch.")
    return fingerprint(environment(), device=training.device.type, precision=precision)


def _store(
    command: Command,
    manifest: Manifest,
    config: RunConfig,
    stretch: tuple[float, float] | None,
) -> ImageStore:
    # Views are cropped from twice the image size; a description of stages reads up to three times.
    times = PYRAMID_ZOOM if getattr(config, "features", "") == "stages" else 2
    return ImageStore(
        manifest,
        times * config.image_size,
        fit=FITS[command],
        workers=config.workers,
        decoding=Decoding(config.max_pixels, config.chosen_page(), config.chosen_bands(), stretch),
        keep=config.cache,
        caches=Path(config.cache_dir),
    )


def _build(config: RunConfig, store: ImageStore, device: torch.device) -> Training:
    torch.set_num_threads(config.threads or available_cores())
    make_repeatable(device)
    precision = pick_precision(config.precision, device)
    method = build_method(config, store, device, precision)
    return Training(method, config, store, device, precision)


def _decode(store: ImageStore, run: Run) -> Iterator[Event]:
    total = len(store)
    for done in store.prepare():
        run.require_going_on()
        yield Progress("reading images", done, total)
    for line in store.notes:
        yield Notice(line, warning=True)
    if store.file is not None:
        size = _human_size(store.file.stat().st_size)
        yield Notice(
            f"decoded images lie in {store.file} ({size}) for this and later runs; delete it at any time"
        )


def _report_skipped(folder: Path, manifest: Manifest, max_bad: float) -> Iterator[Event]:
    """Write the list of skipped files and report it. Raises InputError when too few images are left."""
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


def _cache_stages(training: Training, run: Run) -> Iterator[Event]:
    """Cache a frozen backbone's stages of unchanging views on the disk, if `cache` allows it and there is space."""
    config, method, store = training.config, training.method, training.store
    wanted = config.cache in ("auto", "disk")
    if not wanted or not isinstance(config, TrainConfig) or not config.keeps_stages():
        return
    assert isinstance(method, DenseSiamMethod)
    encoder = training.network.encoder
    cache = StageCache(encoder, config, store, training.device, training.precision)
    size = _human_size(cache.size)
    if not cache.written():
        if not cache.has_room(asked=config.cache == "disk"):
            yield Notice(
                f"the frozen backbone's features would take {size} in {cache.path.parent}, too much of its free space: "
                "they are computed in every epoch; --cache disk keeps them all the same"
            )
            return
        yield Notice(f"the frozen backbone's features are written once, {size}")
        with closing(cache.write()) as writing:
            for done in writing:
                run.require_going_on()
                yield Progress("features of the frozen backbone", done, len(store))
    yield Notice(
        f"features of the frozen backbone lie in {cache.path} ({size}) for this and later runs; delete it at any time"
    )
    method.stage_cache = cache


def _human_size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _read_run(run: Run) -> tuple[RunConfig, Manifest, tuple[float, float] | None]:
    """Settings, images and stretch of a run that is to go on. Raises ModelError unless they are there and sound."""
    try:
        settings = tomllib.loads((run.folder / "config.toml").read_text(encoding="utf-8"))
        listed = json.loads((run.folder / "dataset.json").read_text(encoding="utf-8"))
        stretch = tuple(map(float, listed["stretch"])) if "stretch" in listed else None
        if stretch is not None and len(stretch) != 2:
            raise ValueError("its stretch is no pair of numbers")
        config = with_settings(CONFIGS[run.command](), settings)
        return config, Manifest.from_dict(listed), stretch
    except (OSError, ValueError, TypeError, KeyError, DenseSiamError) as error:
        raise ModelError(
            f"{run.folder}: no run of {run.command} to resume here ({error}); start a new one without --resume"
        ) from error


def _require_fit(training: Training, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, value in training.network.state_dict().items():
        found = tensors.get(f"network.{name}")
        if found is None or found.shape != value.shape:
            raise ModelError(
                f"{path}: {name} does not fit the run's config.toml; restore that file"
            )
