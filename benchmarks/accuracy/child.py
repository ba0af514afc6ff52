"""One row with one seed in a process of its own: made, scored, written. `jobs.py` starts it with a JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from making import Made, Setting
from rows import ROWS, ablation_rows
from tasks import Task, load_task, pictured

from densesiam_seg.errors import DenseSiamError
from densesiam_seg.evaluation.evaluate import Benchmark, scoring_events
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.evaluation.protocol import prepare_sample
from densesiam_seg.io.environment import environment
from densesiam_seg.io.files import replace_json

PICTURED = 4
"""Images whose masks are kept for the picture."""


def main() -> None:
    """Do what the JSON object in the first argument says."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    try:
        result = finish(order)
    except DenseSiamError as error:
        sys.exit(str(error))
    replace_json(Path(order["out"]), result)


def finish(order: dict[str, Any]) -> dict[str, Any]:
    """Make the row, score it, keep its masks of a few images; returns what is written."""
    row = (ablation_rows() if order["ablation"] else ROWS)[order["row"]]
    task = row.task(load_task(order["dataset"], Path(order["root"]), order["split"], order["side"]))
    setting = Setting(
        task,
        order["seed"],
        Path(order["out"]).with_suffix(""),
        order["quick"],
        order["device"],
        order["threads"],
    )
    code = revision()
    began, processor = time.perf_counter(), time.process_time()
    made = row.make(setting)
    training = time.perf_counter() - began, time.process_time() - processor
    processor = time.process_time()
    evaluation = score(task, made)
    scoring = time.process_time() - processor
    keep_masks(Path(order["out"]).with_suffix(".npz"), task, made)
    scores = evaluation.scores
    return {
        **order["identity"],
        "revision": code,
        "mean_iou": scores.mean_iou,
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
        "things_iou": scores.things_iou,
        "stuff_iou": scores.stuff_iou,
        "iou": dict(zip(scores.names, scores.iou, strict=True)),
        "clusters": evaluation.clusters,
        "clusters_in_use": scores.clusters_in_use,
        "readout": evaluation.readout,
        "matching": evaluation.matching.kind,
        "cluster_to_class": evaluation.matching.cluster_to_class,
        "counts": evaluation.counts.tolist(),
        "training_processor_seconds": training[1],
        "training_wall_seconds": training[0],
        "scoring_processor_seconds": scoring,
        "peak_gigabytes": peak_gigabytes(),
        "environment": facts(order["device"]),
    }


def score(task: Task, made: Made) -> Evaluation:
    """One confusion matrix over the whole scored split, and one matching."""
    scored = Benchmark(task.dataset, task.scored, task.protocol, allow_missing=True)
    *_, evaluation = scoring_events(scored, made.masks_of, [made.reading], task.side)
    assert isinstance(evaluation, Evaluation)
    return evaluation


def keep_masks(path: Path, task: Task, made: Made) -> None:
    """The masks of the pictured images, as cluster ids, in one file."""
    masks: dict[str, Any] = {str(place): mask for place, mask in _masks(task, made)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez_compressed(partial, **masks)
    partial.replace(path)


def _masks(task: Task, made: Made) -> Iterable[tuple[int, np.ndarray[Any, Any]]]:
    for place in pictured(PICTURED, len(task.scored)):
        image, label = prepare_sample(
            task.scored.items[place], task.dataset, task.protocol, task.side, made.masks_of.zoom
        )
        size = (label.shape[0], label.shape[1])
        yield place, np.asarray(made.masks_of(image[None], task.protocol, [size])[0][0])


def facts(device: str) -> dict[str, Any]:
    """Versions and the processor, without anything that names this very machine."""
    known = environment()
    names = ("python", "packages", "machine", "cpu_capability", "threads")
    return {**{name: known[name] for name in names}, "device": device}


def revision() -> str:
    """The commit, with a plus where files differ from it."""

    def git(*words: str) -> str:
        found = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        return found.stdout.strip()

    code = ("densesiam_seg", "datasets", "benchmarks/accuracy")
    changed = git("status", "--porcelain", "--", *(f":/{folder}" for folder in code))
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def peak_gigabytes() -> float | None:
    """The most memory that this process has had; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(each.split()[1]) * 1024 / 1e9 for each in lines if each.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
