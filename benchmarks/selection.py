"""How far a choice without labels is from the one that labels would have made.

    python -P benchmarks/selection.py --model RUN [RUN ...] --dataset camvid --root CAMVID --split train

For every run: its head, k-means and merge with as many clusters as the head, and the merge with other numbers of
clusters; of each the label-free score and the mean IoU by the labels of the split. Then what was chosen without
labels, what labels would have chosen, and the gap between these in mean IoU, for the read-out and for K. Read-outs are
fitted to the split's images, judged on at most 64 of them and scored on all. `--limit N` takes N images, evenly
spread. Labels are used for this report alone. Keep it off the split that you report results on: a selection that was
improved by that would have seen its labels. Writes `benchmarks/results/selection.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from densesiam_seg.evaluation.evaluate import Benchmark, Reading, benchmark, scoring_events
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.evaluation.protocol import read_masks
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.readout import GRID, READOUTS, candidates
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.selection import Choice, choose, sampled_indices

RESULTS = Path(__file__).parent / "results" / "selection.json"


def main() -> None:
    """Judge and score every run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="runs, one a seed")
    parser.add_argument("--dataset", default="camvid")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the dataset")
    parser.add_argument("--split", default="train")
    parser.add_argument("--limit", type=int, help="images of the split, evenly spread; default all")
    parser.add_argument("--over-clusters", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of read-outs and views")
    parser.add_argument("--threads", type=int, help="default torch's own")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    task = limited(benchmark(arguments.dataset, arguments.root, arguments.split), arguments.limit)
    classes = len(task.dataset.classes)
    runs = []
    for number, path in enumerate(arguments.model):
        rows = judged_and_scored(path, task, arguments.over_clusters, arguments.seed)
        own = rows[0]["clusters"]
        groups = {
            "read-out": [row for row in rows if row["clusters"] == own],
            # More clusters than classes are matched many to one, which any more of them can only improve.
            "clusters": [
                row for row in rows if "merge" in row["readout"] and row["clusters"] <= classes
            ],
        }
        found = {name: compared(group) for name, group in groups.items()}
        runs.append({"run": number, "candidates": rows, **found})
        print(f"run {number}")
        for row in rows:
            print("  " + described(row))
        for name, each in found.items():
            print(f"  {name}: {told(each)}", flush=True)
    summary = {name: mean_of([run[name] for run in runs]) for name in ("read-out", "clusters")}
    for name, mean in summary.items():
        print(f"{name}, mean of {len(runs)} runs: " + told(mean))
    report = {
        "dataset": task.dataset.title,
        "split": task.samples.split,
        "images": len(task.samples),
        "protocol": task.protocol.describe(rows[0]["side"]),
        "over_clusters": arguments.over_clusters,
        "seed": arguments.seed,
        "summary": summary,
        "runs": runs,
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def limited(task: Benchmark, limit: int | None) -> Benchmark:
    """The task with some of its images."""
    items, count = task.samples.items, len(task.samples)
    wanted = min(limit or count, count)
    some = [items[place * count // wanted] for place in range(wanted)]
    return replace(task, samples=replace(task.samples, items=type(items)(some)))


def judged_and_scored(path: Path, task: Benchmark, fine: int, seed: int) -> list[dict[str, Any]]:
    """A row for each candidate of a run, the head first."""
    segmenter = Segmenter.load(path)
    manifest = scan([str(item.image) for item in task.samples.items])
    own = segmenter.card.clusters
    found = list(candidates(segmenter, manifest, READOUTS, [own], fine, seed=seed))
    merged = next(each for each in found if each.merges is not None)
    found += [merged.with_clusters(count) for count in GRID if count != own]
    images = [manifest.path(index) for index in sampled_indices(len(manifest))]
    choice = choose(found, images, seed=seed)
    return [
        {
            "readout": candidate.segmenter.readout,
            "side": task.side(segmenter),
            **asdict(candidate.quality),
            "mean_iou": evaluation.scores.mean_iou,
            "pixel_accuracy": evaluation.scores.pixel_accuracy,
            "matching": evaluation.matching.kind,
        }
        for candidate, evaluation in zip(
            choice.candidates, by_labels(task, segmenter, choice), strict=True
        )
    ]


def by_labels(task: Benchmark, segmenter: Segmenter, choice: Choice) -> list[Evaluation]:
    """Every candidate scored in one pass."""
    read = [candidate.segmenter for candidate in choice.candidates]
    events = scoring_events(
        task,
        read_masks(segmenter, [each.read_out for each in read]),
        [Reading(each.card.clusters, each.readout) for each in read],
        task.side(segmenter),
    )
    return [event for event in events if isinstance(event, Evaluation)]


def compared(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The choice without labels, that of labels, and what lies between them in mean IoU."""
    chosen = max(rows, key=lambda row: row["score"])
    best = max(rows, key=lambda row: row["mean_iou"])
    return {
        "chosen": name_of(chosen),
        "best": name_of(best),
        "chosen_iou": chosen["mean_iou"],
        "best_iou": best["mean_iou"],
        "gap": best["mean_iou"] - chosen["mean_iou"],
        "gap_of_the_first": best["mean_iou"] - rows[0]["mean_iou"],
        "gap_of_chance": best["mean_iou"] - statistics.mean(row["mean_iou"] for row in rows),
    }


def mean_of(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Numbers as means over runs, names listed."""
    means = {
        name: statistics.mean(each[name] for each in found)
        for name, value in found[0].items()
        if isinstance(value, float)
    }
    names = {name: ", ".join(each[name] for each in found) for name in ("chosen", "best")}
    return {**names, **means}


def name_of(row: dict[str, Any]) -> str:
    return f"{row['readout']} K={row['clusters']}"


def described(row: dict[str, Any]) -> str:
    return (
        f"{name_of(row):20} score {row['score']:.4f}, views agree {100 * row['agreement']:.1f} %, balance "
        f"{row['balance']:.2f}, in use {row['in_use']}; mean IoU {row['mean_iou']:.2f} ({row['matching']})"
    )


def told(each: dict[str, Any]) -> str:
    return (
        f"chosen {each['chosen']} ({each['chosen_iou']:.2f}), labels would choose {each['best']} "
        f"({each['best_iou']:.2f}): gap {each['gap']:.2f}; of always the first {each['gap_of_the_first']:.2f}, "
        f"of chance {each['gap_of_chance']:.2f}"
    )


if __name__ == "__main__":
    main()
