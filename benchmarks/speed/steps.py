"""Rows about a training step: its time and its memory against the bare network's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from measure import Row, alternate, in_new_process, peak_bytes, ratio_row, threads, timed
from torch import Tensor

from densesiam_seg.config import TrainConfig, with_settings
from densesiam_seg.events import EpochRecord
from densesiam_seg.images.store import Batch
from densesiam_seg.io import devices
from densesiam_seg.io.devices import autocast, pick_precision
from densesiam_seg.methods.densesiam import DenseSiamMethod, Seen, objective
from densesiam_seg.methods.method import Objective
from densesiam_seg.network.encoder import Encoder
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.presets import train_preset
from densesiam_seg.training.loop import Training
from densesiam_seg.training.recipes import build_method
from densesiam_seg.views.pair import ViewPair

CLUSTERS = 27


class Ready(DenseSiamMethod):
    """DenseSiam on views that are there already, with all its losses: the step without its input."""

    def __init__(self, network: DenseSiam, config: TrainConfig, views: ViewPair) -> None:
        super().__init__(network, config)
        self.views = views

    def drawn(self, images: Tensor, indices: Sequence[int], epoch: int) -> Seen:
        """The same views every time."""
        return Seen(images, self.views)

    def objective(self, drawn: Seen | Tensor, indices: Sequence[int], epoch: int) -> Objective:
        """With the loss of regions."""
        features = self.network.paired_features(self.views)
        return objective(self.network, features, self.config, regions=True, pixels=self.pixels)


class Blank:
    """A store whose images nobody looks at."""

    def __init__(self, images: int) -> None:
        self.images = images

    def __len__(self) -> int:
        return self.images

    def batches(
        self, groups: Sequence[tuple[int, ...]], *, pinned: bool = False
    ) -> Iterator[Batch]:
        """Empty images."""
        for group in groups:
            yield Batch(torch.empty(0), group)


def settings(size: int, batch: int, **more: Any) -> TrainConfig:
    """The balanced preset's settings at this size."""
    config = with_settings(
        train_preset("balanced", 10 * batch, gpu=False, start="none")[1],
        {"image_size": size, "batch_size": batch, "clusters": CLUSTERS, "weights": "none", **more},
    )
    assert isinstance(config, TrainConfig)
    return config


def random_views(size: int, batch: int, device: torch.device) -> ViewPair:
    """Noise, and crops drawn as usual."""
    from densesiam_seg.views.parameters import sample_geometry

    draw = torch.Generator().manual_seed(0)
    # As views come from a GPU, or from a processor.
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    one, two = (
        torch.randn(batch, 3, size, size, generator=draw).to(device, memory_format=layout)
        for _ in range(2)
    )
    return ViewPair(one, two, sample_geometry(0, 0, range(batch)).to(device))


def ready_training(
    config: TrainConfig, steps: int, device: torch.device, *, compiled: bool = False
) -> Training:
    """A loop of `steps` steps an epoch whose views are ready; `compiled` as a long run on a GPU is."""
    precision = pick_precision(config.precision, device)
    store: Any = Blank(steps * config.batch_size)
    method = build_method(config, store, device, precision)
    views = random_views(config.image_size, config.batch_size, device)
    training = Training(Ready(method.network, config, views), config, store, device, precision)
    if compiled:
        compile_now(training)
    return training


def compile_now(training: Training) -> float:
    """Compile what `training.compiling` would, and how many seconds that takes."""

    # What others of this process have compiled counts against a limit.
    torch.compiler.reset()

    def compile() -> None:
        with autocast(training.device, training.precision):
            training.method.compile(training.config.batch_size)
        if training.device.type == "cuda":
            torch.cuda.synchronize()

    training.compiled = timed(compile)
    return training.compiled


def epochs_of(training: Training) -> Callable[[], None]:
    """Runs one more epoch at each call."""
    records = training.records()

    def one() -> None:
        while not isinstance(next(records), EpochRecord):
            pass
        if training.device.type == "cuda":
            torch.cuda.synchronize()

    return one


def bare(
    backbone: str,
    size: int,
    batch: int,
    *,
    fast: bool,
    device: torch.device,
    repeats: int = 1,
    compiled: bool = False,
) -> Callable[[], None]:
    """Forward and backward of the encoder on both views: fp32, view by view, as the papers' code; or as here."""
    torch.manual_seed(0)
    encoder = Encoder(backbone, 128).to(device).train()
    views = torch.randn(2 * batch, 3, size, size, device=device)
    if fast:
        encoder = encoder.to(memory_format=torch.channels_last)
        views = views.contiguous(memory_format=torch.channels_last)
    precision = pick_precision("auto", device) if fast else torch.float32
    call = devices.compiled(encoder.forward) if compiled else encoder

    def step() -> None:
        for _ in range(repeats):
            encoder.zero_grad(set_to_none=True)
            with autocast(device, precision):
                outputs = [call(part) for part in ([views] if fast else views.chunk(2))]
            total = sum(
                (output.float().square().mean() for output in outputs),
                torch.zeros((), device=device),
            )
            torch.autograd.backward(total)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def step_rows(repeats: int, size: int = 160, batch: int = 16, steps: int = 2) -> Iterator[Row]:
    """One thread, processor seconds."""
    device = torch.device("cpu")
    config = settings(size, batch, epochs=repeats + 1, threads=1)
    with threads(1):
        full, fast, plain = alternate(
            epochs_of(ready_training(config, steps, device)),
            bare("resnet18", size, batch, fast=True, device=device, repeats=steps),
            bare("resnet18", size, batch, fast=False, device=device, repeats=steps),
            repeats=repeats,
            clock=time.process_time,
        )
    where = f"size {size}, batch {batch}, 1 thread"
    yield ratio_row(
        "step, all losses / bare network, bf16, channels-last", full, fast, 1.4, note=where
    )
    yield ratio_row("step, all losses / bare network, fp32, NCHW", full, plain, 0.75, note=where)


def memory_rows(size: int = 160, batch: int = 16) -> Iterator[Row]:
    """Peaks of whole processes, libraries included, and what each adds to its libraries."""
    full = in_new_process(_full_peak, size, batch)
    network = in_new_process(_bare_peak, size, batch)
    note = f"{full[1] / 1e6:.0f} / {network[1] / 1e6:.0f} MB"
    value = full[1] / network[1]
    yield Row("peak memory of training / bare network", value, value, value, limit=1.3, note=note)
    value = (full[1] - full[0]) / (network[1] - network[0])
    yield Row("the same, without the libraries", value, value, value, note="told beside it")


def _full_peak(size: int, batch: int) -> tuple[int, int]:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from densesiam_seg.datasets.scenes import write_scenes
    from densesiam_seg.images.scan import scan
    from densesiam_seg.images.store import ImageStore

    before = peak_bytes()
    with TemporaryDirectory() as folder:
        write_scenes(Path(folder), 4 * batch, seed=0, side=2 * size, split="train")
        config = settings(size, batch, epochs=1, region_start=0.0)
        store = ImageStore(scan([folder]), 2 * size, keep="ram")
        for _ in store.prepare():
            pass
        device = torch.device("cpu")
        precision = pick_precision("auto", device)
        method = build_method(config, store, device, precision)
        for _ in Training(method, config, store, device, precision).records():
            pass
    return before, peak_bytes()


def _bare_peak(size: int, batch: int) -> tuple[int, int]:
    before = peak_bytes()
    step = bare("resnet18", size, batch, fast=True, device=torch.device("cpu"), repeats=4)
    step()
    return before, peak_bytes()
