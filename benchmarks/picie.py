"""What an epoch of `--method picie` costs, against DenseSiam's and against PiCIE's own code.

    python -P benchmarks/picie.py --images CAMVID/images/train

One thread, image size 160, batch 16, K = 11, processor seconds. The unit is one bare step in the same process: forward
and backward of a ResNet-18-FPN on both views, fp32, NCHW, as its own code computes. An epoch is everything between two
epochs' first steps: clustering, pseudo-labels, views, network, losses, optimiser. PiCIE's own code costs 3.0 such units
per step of an epoch, clustering passes included (measured with that code on a 2-core machine whose bare step took
1.39 s). Prints one line per method and writes `benchmarks/results/picie_cost.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from densesiam_seg.config import TrainConfig, with_settings
from densesiam_seg.events import EpochRecord
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore
from densesiam_seg.io.devices import pick_precision
from densesiam_seg.network.encoder import Encoder
from densesiam_seg.presets import train_preset
from densesiam_seg.training.loop import Training
from densesiam_seg.training.train import RECIPE

OWN_CODE = 3.0
"""Bare fp32 steps that PiCIE's own code costs per step of an epoch."""
RESULTS = Path(__file__).parent / "results" / "picie_cost.json"


def main() -> None:
    """Time the bare step, then an epoch of each method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--epochs", type=int, default=3, help="epochs per method, the first unused")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bare = [bare_step() for _ in range(6)][1:]
    unit = statistics.median(bare)
    print(f"bare fp32 step: {unit:.2f} s (from {min(bare):.2f} to {max(bare):.2f})", flush=True)
    report: dict[str, object] = {"bare_fp32_step_seconds": bare, "own_code_in_bare_steps": OWN_CODE}
    for method in ("densesiam", "picie", "mdc"):
        seconds = epoch_seconds(method, arguments.images, arguments.epochs)
        ratio = statistics.median(seconds) / unit
        print(
            f"{method}: {statistics.median(seconds):.2f} s per step of an epoch (from {min(seconds):.2f} to "
            f"{max(seconds):.2f}), {ratio:.2f} bare steps, {ratio / OWN_CODE:.2f} of PiCIE's own code",
            flush=True,
        )
        report[method] = {"seconds_per_step": seconds, "in_bare_steps": ratio}
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def bare_step() -> float:
    """Processor seconds of the network alone on two views of 16 images."""
    torch.manual_seed(0)
    encoder = Encoder("resnet18", 128).train()
    views = torch.randn(2, 16, 3, 160, 160)
    began = time.process_time()
    total = sum((encoder(view).square().mean() for view in views), torch.zeros(()))
    total.backward()  # type: ignore[no-untyped-call]
    return time.process_time() - began


def epoch_seconds(method: str, images: Path, epochs: int) -> list[float]:
    """Processor seconds of each epoch but the first, over its steps."""
    manifest = scan([images])
    settings = {"method": method, "image_size": 160, "batch_size": 16, "clusters": 11, "threads": 1}
    base = train_preset("balanced", len(manifest), gpu=False, method=method, prior=False)[1]
    # The region loss takes part from the first epoch on, as it does in the costliest epochs of a run.
    config = with_settings(base, {**settings, "epochs": epochs, "region_start": 0.0})
    assert isinstance(config, TrainConfig)
    store = ImageStore(manifest, 320, workers=0, max_pixels=config.max_pixels)
    for _ in store.prepare():
        pass
    device = torch.device("cpu")
    precision = pick_precision(config.precision, device)
    training = Training(
        RECIPE.build(config, store, device, precision), config, store, device, precision
    )
    found = []
    began = time.process_time()
    for record in training.records():
        if isinstance(record, EpochRecord):
            found.append((time.process_time() - began) / training.steps_per_epoch)
            began = time.process_time()
    return found[1:]


if __name__ == "__main__":
    main()
