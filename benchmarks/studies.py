"""Both studies at a budget at which they speak: `correspondence` and `sampling`, 3,000 steps a row, from scratch and
from packaged weights, side by side on one card.

    python -P benchmarks/studies.py --root CAMVID --images COCO/train2017 --images CAMVID/images/train --minutes 5

A step of 16 small images leaves a modern card waiting for the processor, so `--jobs` runs are made at a time, each by
a process of its own. Rows that are the same in both studies are trained once. After `--minutes` all runs are saved and
the program ends; the same command then goes on where it was, and makes no finished run again: seed by seed, so that an
end in between leaves whole tables of fewer seeds. A table and a chart are written after each run, as `densesiam-seg
study` writes them, into `--out`/STUDY-WEIGHTS/; the settings are those of docs/studies.md.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

STUDIES = ("correspondence", "sampling")
WEIGHTS: dict[str, dict[str, str]] = {
    "none": {"backbone": "resnet18", "weights": "none"},
    "packaged": {"backbone": "timm:tf_efficientnet_lite0", "weights": "packaged"},
}
"""What a run begins with; the packaged weights are an EfficientNet's."""


@dataclass(frozen=True)
class Budget:
    """What was asked for."""

    root: Path
    images: tuple[str, ...]
    out: Path
    steps: int
    size: int
    batch: int
    seeds: int
    jobs: int
    device: str

    def plan(self, study: str, weights: str) -> Any:
        """A study as the command would plan it."""
        from densesiam_seg.images.scan import scan
        from densesiam_seg.io.devices import available_cores
        from densesiam_seg.studies.plan import plan_study

        count = len(scan(list(self.images)))
        return plan_study(
            study,
            "camvid",
            self.root,
            images=self.images,
            seeds=self.seeds,
            protocol="picie",
            epochs=math.ceil(self.steps / (count // self.batch)),
            image_size=self.size,
            batch_size=self.batch,
            device=self.device,
            threads=max(1, available_cores() // self.jobs),
            workers=2,
            cache="disk",
            cache_dir=str(self.out / "cache"),
            **WEIGHTS[weights],
        )

    def folder(self, study: str, weights: str) -> Path:
        """Where its table lies."""
        return self.out / f"{study}-{weights}"


@dataclass(frozen=True)
class Job:
    """One training with its probes, and all rows that it is, each a study's name and a row's."""

    weights: str
    seed: int
    rows: tuple[tuple[str, str], ...]


def main() -> None:
    """Make the runs that are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="CamVid: images/ and labels/")
    parser.add_argument("--images", action="append", required=True, help="images to learn from")
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=3000, help="of a row, at least")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=8, help="runs at a time")
    parser.add_argument("--device", default="auto")
    given = vars(parser.parse_args())
    # Some of the time is left for the last steps and checkpoints.
    ends = time.time() + 60 * given.pop("minutes") - 10
    budget = Budget(**{**given, "images": tuple(given["images"])})
    jobs = list(missing(budget))
    print(f"{len(jobs)} runs are missing", flush=True)
    pool = ProcessPoolExecutor(budget.jobs, mp_context=get_context("spawn"))
    made = {pool.submit(run, budget, job, ends): job for job in jobs}
    signal.signal(signal.SIGTERM, lambda *_: stop(pool))
    try:
        for number, future in enumerate(as_completed(made), 1):
            job, result = made[future], future.result()
            if result is not None:
                note(budget, job, result)
                told = " and ".join(row for _, row in job.rows)
                print(
                    f"{number} of {len(jobs)}: {job.weights}, seed {job.seed}, {told}: {result}; "
                    f"{ends - time.time():.0f} s left",
                    flush=True,
                )
    except KeyboardInterrupt:
        print("stopped; what is trained is saved", flush=True)
    pool.shutdown(cancel_futures=True)
    rest = len(list(missing(budget)))
    print("done" if not rest else f"{rest} runs are missing; give the same command again")


def stop(pool: ProcessPoolExecutor) -> None:
    """Hand a signal that came to this process alone on to the runs, which save; Ctrl-C comes to all of them."""
    for process in (pool._processes or {}).values():
        process.terminate()
    raise KeyboardInterrupt


def missing(budget: Budget) -> Iterator[Job]:
    """What is not finished, seed by seed, each training once."""
    from densesiam_seg.config import PretrainConfig, with_settings
    from densesiam_seg.studies.runs import read_results

    plans = {
        (study, weights): budget.plan(study, weights) for weights in WEIGHTS for study in STUDIES
    }
    found = {
        key: {(each.row, each.seed) for each in read_results(budget.folder(*key))} for key in plans
    }
    for seed in range(budget.seeds):
        for weights in WEIGHTS:
            rows: dict[str, list[tuple[str, str]]] = {}
            for study in STUDIES:
                for row in plans[study, weights].rows:
                    form = with_settings(PretrainConfig(), row.settings).to_toml()
                    if (row.name, seed) not in found[study, weights]:
                        rows.setdefault(form, []).append((study, row.name))
            yield from (Job(weights, seed, tuple(same)) for same in rows.values())


def run(budget: Budget, job: Job, ends: float) -> Any:
    """Train and score in this process; None where the time is over, and what was trained is saved."""
    from densesiam_seg.errors import StoppedError
    from densesiam_seg.io.signals import stop_requests
    from densesiam_seg.studies.runs import RowRun, Study, finish, tidy

    if time.time() >= ends:
        return None
    study, name = job.rows[0]
    plan = budget.plan(study, job.weights)
    (row,) = (each for each in plan.rows if each.name == name)
    with stop_requests() as stop:
        # A folder for each, as costs are noted by one process.
        one = RowRun(
            Study(budget.folder(study, job.weights) / "rows" / row.slug, plan, stop), row, job.seed
        )
        one.study.folder.mkdir(parents=True, exist_ok=True)
        events, told = finish(one), False
        try:
            while True:
                if time.time() >= ends and not told:
                    told = True
                    os.kill(os.getpid(), signal.SIGTERM)
                next(events)
        except StoppedError:
            return None
        except StopIteration as end:
            tidy(one)
            return end.value


def note(budget: Budget, job: Job, result: Any) -> None:
    """Add a result to every row that it is, and write the tables anew."""
    from densesiam_seg.io.records import Records
    from densesiam_seg.io.signals import StopRequest
    from densesiam_seg.studies.runs import ROWS, Study
    from densesiam_seg.studies.study import publish

    for study, row in job.rows:
        folder = budget.folder(study, job.weights)
        folder.mkdir(parents=True, exist_ok=True)
        with Records(folder / ROWS) as records:
            records.append(asdict(replace(result, row=row)))
        publish(Study(folder, budget.plan(study, job.weights), StopRequest()))


if __name__ == "__main__":
    main()
