"""Rows on a GPU: the step against the bare network at size 320 and batch 256, and whether the input keeps up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from epochs import store_of
from material import copies, jpegs
from measure import Row, alternate, peak_bytes, rate_row, ratio_row, timed
from steps import bare, epochs_of, ready_training, settings

from densesiam_seg.images.store import epoch_batches, on_device
from densesiam_seg.io.devices import pick_precision
from densesiam_seg.training.loop import Training
from densesiam_seg.training.recipes import build_method

SIZE, BATCH, STEPS = 320, 256, 4
DECODED = 1024


def gpu_rows(scratch: Path, photos: Path | None, repeats: int) -> Iterator[Row]:
    """ResNet-18 and -50 in bf16, then a whole loop fed from JPEGs and from memory."""
    if not torch.cuda.is_available():
        raise SystemExit("--gpu: no CUDA device here")
    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    for backbone in ("resnet18", "resnet50"):
        config = settings(SIZE, BATCH, epochs=repeats + 1, backbone=backbone, device="cuda")
        full, alone = alternate(
            epochs_of(ready_training(config, STEPS, device)),
            bare(backbone, SIZE, BATCH, fast=True, device=device, repeats=STEPS),
            repeats=repeats,
        )
        rate = f"{STEPS * BATCH / min(full):.0f} images/s, {name}"
        yield ratio_row(f"GPU: step / bare network, {backbone}, bf16", full, alone, 1.25, note=rate)
        torch.cuda.empty_cache()
    images = copies(scratch / "coco", jpegs(scratch / "640x480", 64, (640, 480), photos), DECODED)
    config = settings(SIZE, BATCH, epochs=repeats + 1, region_start=0.0, device="cuda")
    ready = epochs_of(ready_training(config, DECODED // BATCH, device))
    ready()
    steps = [timed(ready) for _ in range(repeats)]
    for keep in ("none", "ram"):
        store = store_of(images, config, keep, scratch)
        method = build_method(config, store, device, pick_precision("auto", device))
        training = Training(method, config, store, device, pick_precision("auto", device))
        whole = epochs_of(training)
        whole()
        took = [timed(whole) for _ in range(repeats)]
        source = "from JPEGs" if keep == "none" else "from memory"
        yield ratio_row(f"GPU: epoch {source} / its network steps", took, steps, None, note=name)
        batches = store.batches(epoch_batches(len(store), BATCH, seed=0, epoch=0), pinned=True)
        seconds = timed(lambda batches=batches: _drain(batches, device), time.perf_counter)
        yield rate_row(f"GPU: input alone {source}", DECODED, [seconds], "images/s", None)
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    yield Row(
        "GPU: peak memory", peak, peak, peak, "GB", note=f"process {peak_bytes() / 1e9:.1f} GB"
    )


def _drain(batches: object, device: torch.device) -> None:
    for _ in on_device(batches, device):
        pass
    torch.cuda.synchronize()
