"""What each read-out and refinement brings and costs, for models that are trained already.

    python -P benchmarks/readouts.py --model RUN… --dataset camvid --root CAMVID --split train

Every row is scored by `evaluate` under the data set's protocol. The rows after the read-outs add one option each to the
read-out named by `--on`, the last one adds all that `--best` names. Labels score and choose nothing in the program, but
whoever picks a default by this table picks by them: measure on a split that no reported number comes from.

Cost is processor time of an image, file to score, and its ratio to the head's; a k-means or merge read-out is also
fitted once. Several models (or seeds, with `--seeds`) give means with their standard deviation, and the mean of the
gains over the same model's plain row. Writes `benchmarks/results/readouts.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from densesiam_seg.evaluation.evaluate import evaluate
from densesiam_seg.inference.readout import OVER_CLUSTERS, READOUTS, load_with_readout
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.test_time import PLAIN, Refinement

RESULTS = Path(__file__).parent / "results" / "readouts.json"
Row = dict[str, Any]


def main() -> None:
    """Score every row for every model, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="runs or models")
    parser.add_argument("--dataset", default="camvid", help="a built-in name or a TOML file")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--protocol", help="default: the data set's")
    parser.add_argument("--on", default="head", choices=READOUTS, help="what the options add to")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.75, 1.0, 1.25])
    parser.add_argument("--best", default="flip+pamr", help="the last row's options")
    parser.add_argument("--over-clusters", type=int, default=OVER_CLUSTERS)
    parser.add_argument("--clusters", type=int, help="of k-means and merge; default: the head's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of k-means and merge")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    for model in arguments.model:
        for row in model_rows(model, arguments):
            rows.append(row)
            print(
                f"{row['model']}, seed {row['seed']}, {row['row']}: mean IoU {row['mean_iou']:.2f}, "
                f"pixel accuracy {row['pixel_accuracy']:.2f}, {row['milliseconds']:.0f} ms an image",
                flush=True,
            )
    print("\n" + "\n".join(table(rows)))
    report = {
        "dataset": Path(arguments.dataset).name,
        "split": arguments.split,
        "on": arguments.on,
        "over_clusters": arguments.over_clusters,
        "threads": arguments.threads,
        "rows": rows,
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def model_rows(model: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    """Each read-out of one model plain, then each refinement of the one named."""
    base: Segmenter | None = None
    for name in READOUTS:
        for seed in arguments.seeds if name != "head" else arguments.seeds[:1]:
            began = time.process_time()
            read = load_with_readout(
                model,
                name,
                None if name == "head" else arguments.clusters,
                over_clusters=arguments.over_clusters if name == "merge" else None,
                seed=seed,
                device="cpu",
            )
            fitted = time.process_time() - began
            if name == arguments.on and base is None:
                base = read
            yield scored(model, name, read, PLAIN, arguments, seed=seed, fit=fitted)
    assert base is not None
    for name, how in refinements(arguments).items():
        yield scored(model, f"{arguments.on} + {name}", base, how, arguments, arguments.seeds[0])


def refinements(arguments: argparse.Namespace) -> dict[str, Refinement]:
    """Each option alone, then the best ones together."""
    single = {
        "flip": {"flip": True},
        "scales": {"scales": tuple(arguments.scales)},
        "guided": {"refine": "guided"},
        "pamr": {"refine": "pamr"},
    }
    joined = {
        key: value for name in arguments.best.split("+") for key, value in single[name].items()
    }
    options: dict[str, dict[str, Any]] = {**single, arguments.best: joined}
    return {name: Refinement(**values) for name, values in options.items()}


def scored(
    model: Path,
    name: str,
    segmenter: Segmenter,
    how: Refinement,
    arguments: argparse.Namespace,
    seed: int,
    fit: float = 0.0,
) -> Row:
    """One row of one model."""
    began = time.process_time()
    result = evaluate(
        arguments.dataset,
        arguments.root,
        segmenter,
        split=arguments.split,
        protocol=arguments.protocol,
        refinement=how,
    )
    spent = time.process_time() - began
    scores = result.scores
    return {
        "model": model.parent.name if model.name == "model" else model.name,
        "seed": seed,
        "row": name,
        "readout": result.readout,
        "clusters": result.clusters,
        "refinement": asdict(how),
        "protocol": result.protocol,
        "data_digest": result.digest,
        "images": result.images,
        "mean_iou": scores.mean_iou,
        "pixel_accuracy": scores.pixel_accuracy,
        "clusters_in_use": scores.clusters_in_use,
        "iou": dict(zip(scores.names, scores.iou, strict=True)),
        "milliseconds": 1000 * spent / result.images,
        "fit_seconds": fit,
    }


def table(rows: list[Row]) -> Iterator[str]:
    """Markdown: means over models and seeds; gains over the row that an option was added to."""
    yield "| row | mean IoU | pixel accuracy | gain | ms an image | × head | fit, s |"
    yield "|---|---|---|---|---|---|---|"
    names = list(dict.fromkeys(row["row"] for row in rows))
    head = statistics.mean(row["milliseconds"] for row in rows if row["row"] == "head")
    for name in names:
        these = [row for row in rows if row["row"] == name]
        base = name.split(" + ")[0] if " + " in name else "head"
        gains = {
            key: statistics.mean(
                row[key] - plain[key]
                for row in these
                for plain in [
                    next(r for r in rows if (r["model"], r["row"]) == (row["model"], base))
                ]
            )
            for key in ("mean_iou", "pixel_accuracy")
        }
        cost = statistics.mean(row["milliseconds"] for row in these)
        fit = statistics.mean(row["fit_seconds"] for row in these)
        scores = f"{spread(these, 'mean_iou')} | {spread(these, 'pixel_accuracy')}"
        gain = f"{gains['mean_iou']:+.2f} / {gains['pixel_accuracy']:+.2f}"
        yield f"| {name} | {scores} | {gain} | {cost:.0f} | {cost / head:.1f} | {fit:.0f} |"


def spread(rows: list[Row], key: str) -> str:
    """Mean ± standard deviation, or the only value."""
    values = [row[key] for row in rows]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
