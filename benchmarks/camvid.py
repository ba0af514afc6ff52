"""The plain method on CamVid, from scratch: train on `train`, score `val`, over several seeds.

    python -P benchmarks/camvid.py --root CAMVID

Setting: image size 160, batch 16, K = 11, 10 epochs, learning rate 0.05 unscaled, no pre-trained weights, `picie`
protocol, last checkpoint. Labels are used for the final score alone. Writes one line per seed and the mean with its
standard deviation to stdout, and everything to `benchmarks/results/camvid.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import densesiam_seg

SETTINGS = {
    "image_size": 160,
    "batch_size": 16,
    "clusters": 11,
    "epochs": 10,
    "rate_scaling": "none",
    "weights": "none",
    "prior": "none",
}
RESULTS = Path(__file__).parent / "results" / "camvid.json"


def main() -> None:
    """Train and score each seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, required=True, help="folder that holds images/ and labels/"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/camvid"), help="folder for the runs")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=JSON", help="settings to change"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    changes = {
        name: json.loads(value) for name, value in (item.split("=", 1) for item in arguments.set)
    }

    rows = []
    for seed in arguments.seeds:
        began, processor = time.perf_counter(), time.process_time()
        trained = densesiam_seg.train(
            arguments.root / "images" / "train",
            arguments.out / f"seed-{seed}",
            preset="balanced",
            overwrite=True,
            seed=seed,
            **SETTINGS | changes,
        )
        wall, processor = time.perf_counter() - began, time.process_time() - processor
        result = densesiam_seg.evaluate(
            "camvid", arguments.root, trained.model, split="val", protocol="picie"
        )
        scores = result.scores
        rows.append(
            {
                "seed": seed,
                "mean_iou": scores.mean_iou,
                "pixel_accuracy": scores.pixel_accuracy,
                "clusters_in_use": scores.clusters_in_use,
                "iou": dict(zip(scores.names, scores.iou, strict=True)),
                "wall_seconds": wall,
                "processor_seconds": processor,
                "data_digest": result.digest,
            }
        )
        print(
            f"seed {seed}: mean IoU {scores.mean_iou:.2f}, pixel accuracy {scores.pixel_accuracy:.2f}, clusters in "
            f"use {scores.clusters_in_use}/11, training {wall:.0f} s wall, {processor:.0f} s of processor time",
            flush=True,
        )
    for name in ("mean_iou", "pixel_accuracy"):
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: {statistics.mean(values):.2f} ± {spread:.2f} over {len(values)} seeds")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"protocol {result.protocol}; peak memory {peak:.2f} GB")
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "settings": SETTINGS | changes,
        "protocol": result.protocol,
        "peak_memory_gb": peak,
        "seeds": rows,
    }
    arguments.results.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
