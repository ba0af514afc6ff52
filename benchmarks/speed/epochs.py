"""Rows about whole epochs: what input, records and checkpoints add to the steps, and how it grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from material import copies, jpegs
from measure import Clock, Row, ratio_row, threads, timed
from steps import epochs_of, ready_training, settings

from densesiam_seg.config import TrainConfig, with_settings
from densesiam_seg.events import EpochRecord, Progress
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore, Keep, left_out
from densesiam_seg.io.devices import available_cores, pick_precision
from densesiam_seg.io.records import Records
from densesiam_seg.presets import train_preset
from densesiam_seg.training.checkpoint import save_checkpoint
from densesiam_seg.training.loop import Training
from densesiam_seg.training.recipes import build_method
from densesiam_seg.training.setup import reads_late

CPU = torch.device("cpu")
PAPER = 0.28
"""DenseSiam's cost over PiCIE's in the paper."""


def fed_rows(
    scratch: Path,
    photos: Path | None,
    repeats: int,
    *,
    device: torch.device = CPU,
    size: int = 160,
    batch: int = 16,
    count: int = 352,
    pixels: tuple[int, int] = (480, 360),
    limits: tuple[float | None, float | None] = (None, None),
) -> Iterator[Row]:
    """An epoch from JPEG files, the first with all reading that is before it, and the next, over its network steps.

    Everything as a run does it on the device: on a GPU processes decode, and the first epoch is not kept waiting.
    """
    name = f"{pixels[0]}x{pixels[1]}"
    images = copies(
        scratch / f"fed-{name}-{count}", jpegs(scratch / name, 64, pixels, photos), count
    )
    config = settings(size, batch, epochs=2, region_start=0.0, device=device.type)
    steps = count // batch
    ready = epochs_of(ready_training(with_settings(config, {"epochs": repeats + 1}), steps, device))
    ready()
    rounds = []
    for _ in range(repeats):
        bare = timed(ready)
        store = ImageStore(
            scan([images]), 2 * size, keep="ram", caches=scratch, processes=device.type != "cpu"
        )
        precision = pick_precision(config.precision, device)
        method = build_method(config, store, device, precision)
        run = epochs_of(Training(method, config, store, device, precision))
        rounds.append((timed(lambda store=store, run=run: _first(store, run, device, batch)), bare))
        rounds[-1] = (rounds[-1][0], timed(run), bare)
    first, later, bare_steps = map(list, zip(*rounds, strict=True))
    what = f"{device.type}: epoch from {count} JPEGs of {name} / its network steps"
    note = f"size {size}, batch {batch}, {count / min(bare_steps):.0f} images/s of network"
    yield ratio_row(f"{what}, first", first, bare_steps, limits[0], note=note)
    yield ratio_row(f"{what}, later", later, bare_steps, limits[1], note=note)


def _first(
    store: ImageStore, run: Callable[[], None], device: torch.device, batch_size: int
) -> None:
    """What is read before the first epoch, and that epoch."""
    late = reads_late(device)
    rest = left_out(len(store), batch_size, seed=0, epoch=0) if late else None
    for _ in store.prepare(rest):
        pass
    run()


def store_of(
    images: Path, config: TrainConfig, keep: Keep, caches: Path, *, processes: bool = False
) -> ImageStore:
    """The images, looked at."""
    store = ImageStore(
        scan([images]),
        2 * config.image_size,
        keep=keep,
        caches=caches,
        processes=processes,
    )
    for _ in store.prepare():
        pass
    return store


def training_of(store: ImageStore, config: TrainConfig) -> Training:
    """A loop over them."""
    precision = pick_precision(config.precision, CPU)
    method = build_method(config, store, CPU, precision)
    return Training(method, config, store, CPU, precision)


def one_epoch(training: Training, folder: Path) -> None:
    """An epoch with its records and a checkpoint, as a run makes them."""
    folder.mkdir()
    with Records(folder / "metrics.jsonl") as records:
        for record in training.records():
            if isinstance(record, Progress):
                continue
            records.append(asdict(record))
            if isinstance(record, EpochRecord):
                break
    tensors, state = training.state()
    save_checkpoint(folder / "checkpoints", tensors, state, step=training.step)


def epoch_rows(scratch: Path, photos: Path | None, repeats: int) -> Iterator[Row]:
    """480x360 JPEGs at size 160; cold decodes every image, writes the cache and builds the network first.

    Judged on one thread by processor seconds, which bear other work on the machine; on all cores by wall time, told.
    """
    images = scratch / "480x360"
    jpegs(images, 352, (480, 360), photos)
    for cores, clock in ((1, time.process_time), (available_cores(), time.perf_counter)):
        config = settings(160, 16, epochs=2, region_start=0.0, threads=cores)
        with threads(cores):
            rounds = [_round(scratch, images, config, clock) for _ in range(repeats)]
        cold, warm, bare = map(list, zip(*rounds, strict=True))
        judged = cores == 1
        how = "1 thread, processor seconds" if judged else f"{cores} threads, wall time"
        yield ratio_row(
            f"epoch / its network steps, cache warm, {how}",
            warm,
            bare,
            1.15 if judged else None,
            note=f"352 JPEGs of 480x360, size 160, batch 16, {min(bare):.1f} s of steps",
        )
        yield ratio_row(
            f"epoch / its network steps, cold, {how}",
            cold,
            bare,
            1.35 if judged else None,
            note="decoding and building the network counted",
        )


def _round(
    scratch: Path, images: Path, config: TrainConfig, clock: Clock
) -> tuple[float, float, float]:
    """Seconds of an epoch without a cache, of one with it, and of its network steps alone; each a network's first."""
    with TemporaryDirectory(dir=scratch) as folder:
        caches = Path(folder, "caches")

        def cold() -> None:
            store = store_of(images, config, "disk", caches)
            one_epoch(training_of(store, config), Path(folder, "cold"))

        took = timed(cold, clock)
        ready = epochs_of(ready_training(config, 352 // config.batch_size, CPU))
        bare = timed(ready, clock)
        training = training_of(store_of(images, config, "disk", caches), config)
        return took, timed(lambda: one_epoch(training, Path(folder, "warm")), clock), bare


def method_rows(scratch: Path, photos: Path | None, repeats: int) -> Iterator[Row]:
    """PiCIE's epoch over DenseSiam's."""
    images = scratch / "480x360"
    jpegs(images, 352, (480, 360), photos)
    seconds: dict[str, list[float]] = {"densesiam": [], "picie": []}
    runs: dict[str, Any] = {}
    for method in seconds:
        base = train_preset("balanced", 352, gpu=False, method=method, start="none")[1]
        config = with_settings(
            base,
            {
                "image_size": 160,
                "batch_size": 16,
                "clusters": 27,
                "region_start": 0.0,
                "epochs": repeats + 1,
            }
            | {"method": method},
        )
        assert isinstance(config, TrainConfig)
        store = store_of(images, config, "ram", scratch)
        runs[method] = epochs_of(training_of(store, config))
    for turn in range(repeats + 1):
        for method, run in runs.items():
            took = timed(run)
            if turn:
                seconds[method].append(took)
    yield ratio_row(
        "epoch of picie / epoch of densesiam",
        seconds["picie"],
        seconds["densesiam"],
        None,
        note=f"the paper: {1 / PAPER:.2f} (DenseSiam costs 28 % of PiCIE)",
    )


def growth_rows(scratch: Path, counts: tuple[int, ...], repeats: int) -> Iterator[Row]:
    """Processor seconds an image of an epoch at size 32: the largest set's over the smallest's."""
    sources = jpegs(scratch / "96x72", 100, (96, 72), None)
    runs, seconds = [], []
    for count in counts:
        folder = copies(scratch / f"grown-{count}", sources, count)
        config = settings(32, 10, epochs=1000, threads=1)
        runs.append((count, training_of(store_of(folder, config, "ram", scratch), config)))
        seconds.append([])
    torch.set_num_threads(1)
    courses = [training.records() for _, training in runs]
    for turn in range(repeats + 1):
        # The small sets make as many steps as the large one, in turns with it, so that all see the same machine.
        for place, (count, _) in enumerate(runs):
            took = 0.0
            for _ in range(max(counts) // count if turn else 1):
                took += timed(lambda place=place: _to_the_end(courses[place]), time.process_time)
            if turn:
                seconds[place].append(took / max(counts))
    for place, (count, _) in enumerate(runs[1:], 1):
        yield ratio_row(
            f"growth: seconds an image, {count:,} images / {counts[0]:,}",
            seconds[place],
            seconds[0],
            1.05,
            note=f"{1e3 * min(seconds[place]):.2f} / {1e3 * min(seconds[0]):.2f} ms, size 32, 1 thread",
        )


def _to_the_end(records: Iterator[Any]) -> None:
    for record in records:
        if isinstance(record, EpochRecord):
            return
