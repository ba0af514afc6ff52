"""A run directory → a `Training` ready for its next step: a fresh one, or one that goes on."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch

import densesiam_seg
from densesiam_seg.config import RunConfig, TrainConfig, with_settings
from densesiam_seg.errors import DenseSiamError, InputError, ModelError, StoppedError, counted
from densesiam_seg.events import Event, Notice, Progress, Trained
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.images.store import ImageStore, UnreadError, left_out, used_range
from densesiam_seg.io.devices import available_cores, make_repeatable, pick_device, pick_precision
from densesiam_seg.io.environment import compare_fingerprints, environment, fingerprint
from densesiam_seg.io.files import open_regular, remove, replace_json, replace_text
from densesiam_seg.io.records import truncate_to_step, write_records
from densesiam_seg.io.run_directory import read_status, write_status
from densesiam_seg.io.signals import StopRequest
from densesiam_seg.io.tensors import digest_of
from densesiam_seg.methods.densesiam import DenseSiamMethod
from densesiam_seg.methods.stage_cache import StageCache
from densesiam_seg.network.encoder import PYRAMID_ZOOM
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.presets import Preset
from densesiam_seg.training.checkpoint import any_saved, discard_checkpoint, load_checkpoint
from densesiam_seg.training.compiling import compiling
from densesiam_seg.training.loop import Training
from densesiam_seg.training.recipes import (
    CONFIGS,
    FITS,
    Command,
    begun,
    build_method,
    choose_settings,
)
from densesiam_seg.training.request import added, require_same
from densesiam_seg.training.weights import SCRATCH, copy_network, load_encoder

CONFIG = "config.toml"
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
    group: Group = ALONE
    reads_first: bool = False
    """Whether every image is read before training, wherever it runs."""

    def require_going_on(self) -> None:
        if self.stop:
            raise StoppedError(
                "stopped before the first step; go on with "
                f"densesiam-seg {self.command} --resume --out {self.folder}",
                self.stop.number,
            )


@dataclass(frozen=True)
class Beginning:
    """What a run begins with."""

    manifest: Manifest
    preset: Preset | None
    given: Mapping[str, Any]
    max_bad: float
    initial: tuple[DenseSiam, str] | None
    """A trained network to take the weights from, with the path it came from."""


def has_begun(folder: Path) -> bool:
    """Whether a run has anything to go on from; before its first checkpoint it can be begun again."""
    return read_status(folder).get("status") == "done" or any_saved(folder / "checkpoints")


def fresh(run: Run, beginning: Beginning) -> Generator[Event, None, Training]:
    """Decode the images, settle the settings and build the network; everything is written into the run's folder."""
    manifest, preset, given = beginning.manifest, beginning.preset, beginning.given
    initial, first = beginning.initial, run.group.first
    if first:
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
    store = _store(run, manifest, config, None, device)
    if config.stretch:
        decoding = store.decoding
        used = run.group.by_first(lambda: used_range(manifest, decoding))
        yield Notice(f"stretch: {used[0]:.4g} to {used[1]:.4g} of the range become 0 and 255")
        store = _store(run, manifest, config, used, device)
    yield from _decode(store, run, _read_first(run, config, len(manifest), device))
    yield from _report_skipped(run, store.manifest, beginning.max_bad)
    # Skipped files change the number of steps of an epoch.
    _, config = choose_settings(run.command, name, len(store), gpu, given, learned=learned)
    training = _build(config, store, device, run.group)
    if initial:
        weights_line = copy_network(training.network, *initial)
    else:
        weights_line = load_encoder(training.network.encoder, config.backbone, config.weights)
    # Before anything that follows from the weights, which one host may have and another may not.
    _require_alike(training)
    scratch = weights_line.endswith(SCRATCH)
    if not (learned or scratch or initial):
        # Only now is it known that `auto` fetched weights.
        _, config = choose_settings(run.command, name, len(store), gpu, given, learned=True)
        if config != training.config:
            loaded = training.network
            training = _build(config, store, device, run.group)
            copy_network(training.network, loaded, "")
    if first:
        head = f"# preset {name}, densesiam-seg {densesiam_seg.__version__}\n"
        replace_text(run.folder / CONFIG, head + config.to_toml())
        _write_images(run.folder, store)
        _write_environment(run.folder, training)
    summary = [f"{each} {getattr(config, each)}" for each in SUMMARY if hasattr(config, each)]
    yield Notice(f"preset {name}: {', '.join(summary)}")
    yield Notice(weights_line)
    if config.freeze and scratch:
        yield Notice("the frozen backbone is untrained; give it --weights", warning=True)
    yield from _cache_stages(training, run)
    yield from compiling(training)
    if first and training.compiled is not None:
        _write_environment(run.folder, training)
    return training


def resumed(
    run: Run, given: Mapping[str, Any], *, accept_data_change: bool = False
) -> Generator[Event, None, Training | None]:
    """The run in its folder, as its last sound checkpoint left it; None when it had finished.

    Raises UsageError for settings `given` that are not the run's, and ModelError for images or checkpoints that are no
    longer what they were.
    """
    first = run.group.first
    config, manifest, stretch = run.group.by_first(lambda: _read_run(run))
    require_same(vars(config), given, run.folder)
    if run.group.by_first(lambda: read_status(run.folder)).get("status") == "done":
        yield Notice("this run had finished; nothing to do")
        yield Trained(run.folder, run.folder / "model", None, True, asdict(manifest.passed_over))
        return None
    if with_settings(config, given) != config:
        config = with_settings(config, given)
        if first:
            text = _text(run.folder / CONFIG)
            head = text[: text.index("\n") + 1] if text.startswith("#") else ""
            replace_text(run.folder / CONFIG, head + config.to_toml())
    changes = run.group.by_first(lambda: _changes(run.folder, manifest))
    if changes and not accept_data_change:
        raise ModelError(
            f"{manifest.root}: since the run began {changes}; put things back, go on with the images that it began "
            f"with, as they are now, by --accept-data-change, or start a new run with --init-from {run.folder}"
        )
    if first:
        write_status(run.folder, "running")
    if changes:
        manifest = run.group.by_first(manifest.restamped)
        yield Notice(f"since the run began {changes}: the result may be another", warning=True)
    device = run.group.by_each(lambda: pick_device(config.device))
    store = _store(run, manifest, config, stretch, device)
    unread = run.group.by_first(lambda: _unread(run.folder))
    yield from _decode(store, run, None)
    if len(store) != len(manifest):
        bad = next(each for each in store.manifest.skipped if each not in manifest.skipped)
        if unread:
            raise UnreadError.of(bad)
        raise ModelError(f"{bad.path}: was read before and cannot be now; put it back")
    if (changes or unread) and first:
        _write_images(run.folder, store)
    training = _build(config, store, device, run.group)
    loaded = run.group.by_first(lambda: load_checkpoint(run.folder / "checkpoints"))
    assert loaded is not None, "a run without checkpoints begins again"
    for path, why in loaded.rejected:
        yield Notice(f"{path}: damaged checkpoint passed over and deleted ({why})", warning=True)
        if first:
            discard_checkpoint(path)
    _require_fit(training, loaded.tensors, loaded.path)
    training.restore(loaded.tensors, loaded.state)
    _require_alike(training)
    yield from _cache_stages(training, run)
    yield from compiling(training)
    # Runs of before this was noted were one process each, and nothing was compiled.
    before = {"processes": 1, "compiled": False, **loaded.state["fingerprint"]}
    differences = compare_fingerprints(before, numerics(training))
    if differences:
        yield Notice(f"resume is not bit-exact: {', '.join(differences)}", warning=True)
    if first:
        truncate_to_step(run.folder / "metrics.jsonl", training.step)
    return training


def _changes(folder: Path, manifest: Manifest) -> str:
    """What came to the images of a run since it began, empty if nothing. Raises ModelError where some are gone."""
    edited, gone = manifest.changed()
    if gone:
        raise ModelError(
            f"{manifest.root}: {len(gone)} of {len(manifest)} training images are gone since the run began, first "
            f"{gone[0]}; put them back, or start a new run with --init-from {folder}"
        )
    new = added(manifest, folder)
    parts = []
    if edited:
        parts.append(f"{counted(len(edited), 'image')} changed, first {edited[0]}")
    if new:
        parts.append(f"{counted(len(new), 'image')} came, first {new[0]}")
    return " and ".join(parts)


def _write_images(folder: Path, store: ImageStore) -> None:
    """Write `dataset.json`: the images of a run, and the range that they were stretched from."""
    stretch = {"stretch": list(store.decoding.stretch)} if store.decoding.stretch else {}
    unread = {"unread": True} if store.unread else {}
    replace_json(folder / "dataset.json", store.manifest.to_dict() | stretch | unread)


def _unread(folder: Path) -> bool:
    """Whether the run in a folder had not read all of its images when it stopped."""
    return "unread" in json.loads(_text(folder / "dataset.json"))


def all_read(run: Run, store: ImageStore) -> Iterator[Notice]:
    """What is known after the first epoch where training has read the images."""
    if store.late and run.group.first:
        _write_images(run.folder, store)
        yield from (Notice(line, warning=True) for line in store.notes)


def forget(folder: Path) -> None:
    """Delete what a run has learned, so that it begins again.

    The model that a time limit left goes too: the names of its clusters would be given to others.
    """
    for name in ("metrics.jsonl", "checkpoints", "model"):
        remove(folder / name)


def _write_environment(folder: Path, training: Training) -> None:
    """Write `env.json`: where the run is made, and how long its compiler took if it had one."""
    facts = {"fingerprint": numerics(training), "compile_seconds": training.compiled}
    replace_json(folder / "env.json", {**environment(), **facts})


def numerics(training: Training) -> dict[str, Any]:
    """What the last bits of the run's results depend on."""
    precision = str(training.precision).removeprefix("torch.")
    found = fingerprint(environment(), device=training.device.type, precision=precision)
    # The order of sums, as each process has a part of every batch.
    compiled = training.compiled is not None
    return found | {"processes": training.group.count, "compiled": compiled}


def _store(
    run: Run,
    manifest: Manifest,
    config: RunConfig,
    stretch: tuple[float, float] | None,
    device: torch.device,
) -> ImageStore:
    # Views are cropped from twice the image size; a description of stages reads up to three times.
    times = PYRAMID_ZOOM if getattr(config, "features", "") == "stages" else 2
    return ImageStore(
        manifest,
        times * config.image_size,
        fit=FITS[run.command],
        workers=config.workers,
        decoding=Decoding(config.max_pixels, config.chosen_page(), config.chosen_bands(), stretch),
        keep=config.cache,
        caches=Path(config.cache_dir),
        group=run.group,
        processes=device.type != "cpu",
    )


def _read_first(run: Run, config: RunConfig, images: int, device: torch.device) -> list[int] | None:
    """Images to read before training, which are those that the first epoch leaves out; None: all of them.

    On a processor reading would take from the network what it gains, and where the stages of a frozen backbone are
    kept training reads those and no images.
    """
    kept = isinstance(config, TrainConfig) and config.keeps_stages()
    if run.reads_first or kept or not reads_late(device):
        return None
    return left_out(images, config.batch_size, seed=config.seed, epoch=0)


def reads_late(device: torch.device) -> bool:
    """Whether the network leaves the processor free to read images."""
    return device.type != "cpu"


def _build(config: RunConfig, store: ImageStore, device: torch.device, group: Group) -> Training:
    torch.set_num_threads(config.threads or available_cores())
    make_repeatable(device)
    precision = pick_precision(config.precision, device)
    method = build_method(config, store, device, precision, group)
    return Training(method, config, store, device, precision)


def _decode(store: ImageStore, run: Run, first: Sequence[int] | None) -> Iterator[Event]:
    total = len(store)
    for done in store.prepare(first):
        run.require_going_on()
        yield Progress("reading images", done, total)
    if store.fallback is not None:
        yield Notice(f"{store.fallback}: threads read the images, more slowly", warning=True)
    for line in store.notes:
        yield Notice(line, warning=True)
    if store.file is not None:
        size = _human_size(store.file.stat().st_size)
        yield Notice(
            f"decoded images lie in {store.file} ({size}) for this and later runs; delete it at any time"
        )


def _require_alike(training: Training) -> None:
    """Raises InputError where the processes of a group have other images, settings or weights than the first one."""
    group = training.group
    if group.alone:
        return
    facts = [
        ("device or precision", f"{training.device.type}, {training.precision}"),
        ("images", training.store.manifest.digest),
        ("settings", training.config.to_toml()),
        ("weights", digest_of(training.network.state_dict())),
    ]
    for rank, found in enumerate(group.gathered(facts)):
        apart = [what for (what, own), (_, first) in zip(found, facts, strict=True) if own != first]
        if apart:
            raise InputError(
                f"process {rank} of {group.count} has other {' and '.join(apart)} than this one; "
                "give all hosts the same files under the same paths"
            )


def _report_skipped(run: Run, manifest: Manifest, max_bad: float) -> Iterator[Event]:
    """Write the list of skipped files and report it. Raises InputError when too few images are left."""
    folder, skipped = run.folder, manifest.skipped
    if run.group.first:
        write_records(folder / "skipped.jsonl", map(vars, skipped))
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
    if not run.group.alone:
        yield Notice(
            "the frozen backbone's features are computed in every epoch, as there are several processes"
        )
        return
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
        settings = tomllib.loads(_text(run.folder / CONFIG))
        listed = json.loads(_text(run.folder / "dataset.json"))
        stretch = tuple(map(float, listed["stretch"])) if "stretch" in listed else None
        if stretch is not None and not (len(stretch) == 2 and -inf < stretch[0] < stretch[1] < inf):
            raise ValueError("its stretch is no range of numbers")
        config = with_settings(CONFIGS[run.command](), settings)
        return config, Manifest.from_dict(listed), stretch
    except (OSError, ValueError, TypeError, KeyError, RecursionError, DenseSiamError) as error:
        raise ModelError(
            f"{run.folder}: no run of {run.command} to resume here ({error}); start a new one without --resume"
        ) from error


def _text(path: Path) -> str:
    with open_regular(path) as file:
        return file.read().decode("utf-8")


def _require_fit(training: Training, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, value in training.network.state_dict().items():
        found = tensors.get(f"network.{name}")
        if found is None or found.shape != value.shape:
            raise ModelError(
                f"{path}: {name} does not fit the run's config.toml; restore that file"
            )
