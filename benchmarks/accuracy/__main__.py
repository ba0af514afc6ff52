"""Every baseline and ours, recomputed by our own code over several seeds: which masks are better, and by how much.

    make accuracy                                  # or: python benchmarks/accuracy --camvid DIR --coco DIR
    python benchmarks/accuracy --quick             # a look in ten minutes: one seed, a fifth of the steps
    python benchmarks/accuracy --rows rgb-xy ours --datasets camvid
    python benchmarks/accuracy --ablation          # the recipe with one thing changed, scored on the training split

CamVid val, the sample of COCO-Stuff and the demo's held-out scenes, `picie` protocol at 160 px (scenes: 96), as many
clusters as classes. Every (data set, row, seed) is a child process whose result is a file of the work folder; what is
finished with the same settings and data is not made again. Tables with their protocol card go to
`benchmarks/results/accuracy.md` and `.json`, pictures to `docs/`; with `--quick` all of it to the work folder. What is
scored on val must choose nothing.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from grid import grid
from jobs import Children, Job, Means
from report import Line, ablation_table, card, class_table, score_table, summary
from rows import ROWS, Row, ablation_rows
from tasks import DATASETS, SCENES, SIDE, Task, load_task

from densesiam_seg.errors import DenseSiamError
from densesiam_seg.io.files import make_folder, replace_file, replace_json, replace_text
from densesiam_seg.pictures.masks import encode_png

HERE = Path(__file__).parent
RESULTS, PICTURES = HERE.parent / "results", HERE.parents[1] / "docs"


def main() -> None:
    """Do what is missing of what was asked for, and write what there is."""
    asked = options()
    known = ablation_rows() if asked.ablation else ROWS
    unknown = sorted(set(asked.rows or ()) - set(known))
    if unknown:
        sys.exit(f"--rows {unknown[0]}: give some of {', '.join(known)}")
    seeds = asked.seeds or ([0] if asked.quick else [0, 1, 2])
    names = list(dict.fromkeys(asked.datasets))
    roots = {"camvid": asked.camvid, "coco": asked.coco, SCENES: asked.out / SCENES}
    try:
        tasks = [
            load_task(n, roots[n], "train" if asked.ablation else "val", asked.image_size)
            for n in names
        ]
    except DenseSiamError as error:
        sys.exit(f"{error} (--camvid and --coco name the folders, --datasets leaves one out)")
    means = Means(
        asked.out / ("quick" if asked.quick else "full"),
        roots,
        asked.quick,
        asked.ablation,
        asked.device,
        asked.threads,
    )
    every = plan(known, tasks, seeds, means)
    wanted = [job for job in every if asked.rows is None or job.name in asked.rows]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        failed = finish(wanted, asked.jobs, asked.threads)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on with the rows that are missing")
    publish(every, known, tasks, seeds, asked)
    if failed:
        sys.exit(f"{failed} of {len(wanted)} failed; the same command does them again")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path("../shared/data")
    parser.add_argument("--camvid", type=Path, default=shared / "camvid", metavar="DIR")
    parser.add_argument("--coco", type=Path, default=shared / "coco", metavar="DIR")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--rows", nargs="+", metavar="NAME", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="0 1 2 unless given")
    parser.add_argument("--quick", action="store_true", help="fewer steps, one seed")
    parser.add_argument("--ablation", action="store_true", help="parts of the recipe instead")
    parser.add_argument("--image-size", type=int, default=SIDE, help="of all sets but the scenes")
    parser.add_argument("--jobs", type=int, default=2, help="rows at the same time")
    parser.add_argument("--threads", type=int, default=1, help="of each row")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"), help="work folder")
    parser.add_argument("--results", type=Path, help="folder for the tables")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    asked = parser.parse_args()
    if min(asked.jobs, asked.threads) < 1 or min(asked.seeds or [0]) < 0:
        parser.error("--jobs and --threads must be at least 1, --seeds not below 0")
    return asked


def plan(
    known: Mapping[str, Row], tasks: Sequence[Task], seeds: Sequence[int], means: Means
) -> list[Job]:
    """Every job, seed by seed, so that a stopped run has as many of each row; rows without a seed have one."""
    return [
        Job(name, row, task, seed, means)
        for seed in seeds
        for task in tasks
        for name, row in known.items()
        if task.name in row.datasets and (row.seeded or seed == seeds[0])
    ]


def finish(jobs: Sequence[Job], count: int, threads: int) -> int:
    """Do the jobs that have no result yet; returns how many failed."""
    missing = [job for job in jobs if job.result() is None]
    print(f"{len(jobs)} jobs, {len(jobs) - len(missing)} done before", flush=True)
    failed = 0
    with Children(count, threads) as children:
        for number, (job, failure) in enumerate(children.finish(missing), 1):
            result = job.result()
            if failure or result is None:
                failed += 1
                text = f"FAILED: {failure or 'no result'}"
            else:
                text = (
                    f"mean IoU {result['mean_iou']:.2f}, pixel accuracy {result['pixel_accuracy']:.2f}, training "
                    f"{result['training_processor_seconds']:.0f} s"
                )
            print(f"{number} of {len(missing)}: {job}: {text}", flush=True)
    return failed


def publish(
    jobs: Sequence[Job],
    known: Mapping[str, Row],
    tasks: Sequence[Task],
    seeds: Sequence[int],
    asked: argparse.Namespace,
) -> None:
    """Tables, card and pictures of everything that is finished, whether made now or before."""
    results = asked.results or (asked.out / "quick" if asked.quick else RESULTS)
    pictures = asked.pictures or (asked.out / "quick" if asked.quick else PICTURES)
    name = "ablation" if asked.ablation else "accuracy"
    text, report = [], {}
    for task in tasks:
        lines = finished(jobs, known, task, seeds)
        if not lines:
            continue
        notes = card(lines, seeds, command(asked, seeds), quick=asked.quick)
        title = f"{task.dataset.title} {task.scored.split}"
        table = (ablation_table if asked.ablation else score_table)(title, lines, notes)
        by_class = class_table(f"{title}: IoU by class", lines)
        text += [table.markdown(), by_class.markdown()]
        report[task.name] = summary(lines, notes)
        print(f"\n{table.markdown()}")
        if not asked.ablation:
            folder = jobs[0].means.folder / f"{task.name}-{task.scored.split}"
            path = make_folder(pictures) / f"accuracy-{task.name}.png"
            replace_file(path, encode_png(grid(task, lines, folder)))
    if report:
        make_folder(results)
        replace_text(results / f"{name}.md", "\n".join(text))
        replace_json(results / f"{name}.json", {"quick": asked.quick, "datasets": report})


def finished(
    jobs: Sequence[Job], known: Mapping[str, Row], task: Task, seeds: Sequence[int]
) -> list[Line]:
    """The rows of a task that have results."""
    found = []
    for name, row in known.items():
        own = [job for job in jobs if (job.name, job.task.name) == (name, task.name)]
        results = [result for job in own if (result := job.result()) is not None]
        if results:
            found.append(Line(name, row, results, len(own)))
    return found


def command(asked: argparse.Namespace, seeds: Sequence[int]) -> str:
    """The command that makes these tables, without this machine's folders."""
    parts = ["python benchmarks/accuracy --camvid DIR --coco DIR"]
    parts += [f"--{name}" for name in ("quick", "ablation") if getattr(asked, name)]
    parts += [f"--image-size {asked.image_size}"] if asked.image_size != SIDE else []
    parts += [f"--seeds {' '.join(map(str, seeds))}", f"--threads {asked.threads}"]
    return " ".join(parts)


if __name__ == "__main__":
    main()
