"""Does pre-training pay on CamVid? `train` from scratch against `pretrain` and then `train`, with equal total budgets.

    python -P benchmarks/pretraining.py --root CAMVID

Both arms see the same number of images (`--epochs` passes over the training images, 10 unless given); the second arm
spends `--share` of them (one half) on pre-training. Otherwise the setting of `camvid.py`: image size 160, batch 16,
K = 11, learning rate 0.05 unscaled, no downloaded weights, `picie` protocol on val, last checkpoint, labels for the
final score alone. Writes a line per arm and seed to stdout and everything to `benchmarks/results/pretraining.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import densesiam_seg

COMMON = {"image_size": 160, "batch_size": 16, "rate_scaling": "none", "threads": 0}
ARMS = ("scratch", "pre-trained")
RESULTS = Path(__file__).parent / "results" / "pretraining.json"


def main() -> None:
    """Train both arms with each seed and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder with images/ and labels/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10, help="budget of an arm")
    parser.add_argument("--share", type=float, default=0.5, help="of the budget for pre-training")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = [run(arm, seed, arguments) for seed in arguments.seeds for arm in arguments.arms]
    for arm in arguments.arms:
        for name in ("mean_iou", "pixel_accuracy", "processor_seconds"):
            values = [row[name] for row in rows if row["arm"] == arm]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(
                f"{arm}: {name} {statistics.mean(values):.2f} ± {spread:.2f}, {len(values)} seeds"
            )
    report = {
        "settings": COMMON,
        "epochs": arguments.epochs,
        "share": arguments.share,
        "rows": rows,
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def run(arm: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one arm with one seed and score it."""
    images = arguments.root / "images" / "train"
    folder = arguments.out / f"{arm}-seed-{seed}"
    common = {**COMMON, "threads": arguments.threads, "seed": seed, "overwrite": True}
    weights, epochs = "none", arguments.epochs
    began = time.process_time()
    if arm == "pre-trained":
        first = round(arguments.share * epochs)
        densesiam_seg.pretrain(images, folder / "pretrain", weights="none", epochs=first, **common)
        weights, epochs = str(folder / "pretrain"), epochs - first
    trained = densesiam_seg.train(
        images,
        folder / "train",
        weights=weights,
        epochs=epochs,
        clusters=11,
        prior="none",
        **common,
    )
    seconds = time.process_time() - began
    result = densesiam_seg.evaluate(
        "camvid", arguments.root, trained.model, split="val", protocol="picie"
    )
    scores = result.scores
    print(
        f"{arm}, seed {seed}: mean IoU {scores.mean_iou:.2f}, pixel accuracy {scores.pixel_accuracy:.2f}, "
        f"clusters in use {scores.clusters_in_use}/11, {seconds:.0f} s of processor time",
        flush=True,
    )
    return {
        "arm": arm,
        "seed": seed,
        "mean_iou": scores.mean_iou,
        "pixel_accuracy": scores.pixel_accuracy,
        "clusters_in_use": scores.clusters_in_use,
        "processor_seconds": seconds,
        "protocol": result.protocol,
        "data_digest": result.digest,
    }


if __name__ == "__main__":
    main()
