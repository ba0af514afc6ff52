"""What a strong backbone costs: fine-tuned, frozen, and frozen with its features kept on the disk.

    python -P benchmarks/backbones.py --images CAMVID/images/train

One thread, processor seconds of this process per step of training, random weights (no figure here says anything about
accuracy), the median of the steps after the first epoch. `written` is what an image costs once where features are kept,
`MB` what it takes on the disk. Prints one line per backbone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from densesiam_seg.config import TrainConfig, with_settings
from densesiam_seg.events import StepRecord
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore
from densesiam_seg.io.devices import pick_precision
from densesiam_seg.methods.densesiam import DenseSiamMethod
from densesiam_seg.methods.stage_cache import StageCache
from densesiam_seg.presets import train_preset
from densesiam_seg.training.loop import Training
from densesiam_seg.training.recipes import build_method

NAMES = ("resnet18", "timm:vit_small_patch16_dinov3", "convnext_tiny", "swin_t")
CPU = torch.device("cpu")


def main() -> None:
    """One line per backbone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--backbone", action="append", help=f"default: {', '.join(NAMES)}")
    parser.add_argument("--size", type=int, default=160, help="side of a view")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--steps", type=int, default=3, help="steps per epoch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = arguments.batch * arguments.steps
    paths = sorted(path for path in arguments.images.iterdir() if path.is_file())[:count]
    for name in arguments.backbone or NAMES:
        settings = {"backbone": name, "image_size": arguments.size, "batch_size": arguments.batch}
        print(line(name, paths, {**settings, "replay": "run", "epochs": 2}), flush=True)


def line(name: str, paths: list[Path], settings: dict[str, Any]) -> str:
    """The backbone's three ways to train, in processor seconds per step."""
    tuned = step_seconds(training_of(paths, settings))
    frozen = step_seconds(training_of(paths, {**settings, "freeze": True}))
    with tempfile.TemporaryDirectory() as folder:
        training = training_of(paths, {**settings, "freeze": True, "cache_dir": folder})
        config, encoder, method = training.config, training.network.encoder, training.method
        assert isinstance(config, TrainConfig) and isinstance(method, DenseSiamMethod)
        cache = StageCache(encoder, config, training.store, CPU, training.precision)
        began = time.process_time()
        for _ in cache.write():
            pass
        written = (time.process_time() - began) / len(training.store)
        method.stage_cache = cache
        kept = step_seconds(training)
    return (
        f"{name}: fine-tuned {tuned:.2f} s, frozen {frozen:.2f} s, kept {kept:.2f} s a step; "
        f"written {written:.3f} s and {cache.row / 1e6:.2f} MB an image ({training.precision})"
    )


def training_of(paths: list[Path], settings: dict[str, Any]) -> Training:
    """A loop over these images in memory."""
    _, base = train_preset("balanced", len(paths), gpu=False, prior=False)
    config = with_settings(base, {"weights": "none", "threads": 1, **settings})
    store = ImageStore(scan(paths), 2 * config.image_size, keep="ram")
    for _ in store.prepare():
        pass
    precision = pick_precision(config.precision, CPU)
    return Training(build_method(config, store, CPU, precision), config, store, CPU, precision)


def step_seconds(training: Training) -> float:
    """Median processor time between the steps of all epochs but the first."""
    times = []
    began = time.process_time()
    for record in training.records():
        if isinstance(record, StepRecord):
            now = time.process_time()
            if record.epoch:
                times.append(now - began)
            began = now
    return statistics.median(times)


if __name__ == "__main__":
    main()
