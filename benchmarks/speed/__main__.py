"""Everything around the network against the network itself: each figure with its limit, in one run.

    make bench                                     # or: python benchmarks/speed [--photos DIR] [--rows step views …]
    python benchmarks/speed --gpu                  # all about a GPU in six minutes; --rehearse: on a processor
    python benchmarks/speed --profile              # a step by its parts, on this machine's device

Ratios are medians of rounds in which both sides took turns, with the lowest and the highest. Rows on one thread count
processor seconds, so they bear other work on the machine; rows on all cores count wall time and want an idle machine.
Prints one table, writes `benchmarks/results/speed.json` and adds a line to `benchmarks/results/speed-history.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from measure import Row

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    """Measure the rows asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", nargs="+", choices=sorted(rows(Path(), None, 1, 1, 1)), metavar="NAME"
    )
    parser.add_argument(
        "--photos", type=Path, help="folder of JPEGs to use instead of drawn scenes"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--paths", type=int, default=1_000_000, help="files of the scanning row")
    parser.add_argument("--images", type=int, default=1_000, help="the most of the `before` rows")
    parser.add_argument("--gpu", action="store_true", help="all stages on a GPU, or some --stages")
    parser.add_argument("--profile", action="store_true", help="a step by its parts")
    parser.add_argument("--rehearse", action="store_true", help="--gpu on a processor, small")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="of --gpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.profile:
        from gpu import profile_step

        profile_step()
        return
    if arguments.gpu:
        gpu(arguments.results, arguments.stages, rehearse=arguments.rehearse)
        return
    with tempfile.TemporaryDirectory() as scratch:
        known = rows(
            Path(scratch), arguments.photos, arguments.repeats, arguments.paths, arguments.images
        )
        names = arguments.rows or list(known)
        found: list[Row] = []
        for name in names:
            for row in known[name]():
                found.append(row)
                print(line(row), flush=True)
    missed = [row for row in found if row.verdict == "MISSED"]
    print(f"{len(found)} rows, {len(missed)} missed")
    write(found, arguments.results, arguments.photos)


def rows(
    scratch: Path, photos: Path | None, repeats: int, paths: int, images: int
) -> dict[str, Callable[[], Iterator[Row]]]:
    """Every group of rows by its name; nothing is imported before it is asked for."""

    def steps() -> Iterator[Row]:
        from steps import step_rows

        return step_rows(repeats)

    def memory() -> Iterator[Row]:
        from steps import memory_rows

        return memory_rows()

    def epoch() -> Iterator[Row]:
        from epochs import epoch_rows

        return epoch_rows(scratch, photos, min(repeats, 3))

    def methods() -> Iterator[Row]:
        from epochs import method_rows

        return method_rows(scratch, photos, min(repeats, 3))

    def growth() -> Iterator[Row]:
        from epochs import growth_rows

        return growth_rows(scratch, (100, 1000, 10_000), min(repeats, 2))

    def decode() -> Iterator[Row]:
        from inputs import decode_rows

        return decode_rows(scratch, photos, repeats)

    def inputs() -> Iterator[Row]:
        from inputs import input_rows, overlap_rows

        yield from input_rows(scratch, photos, repeats)
        yield from overlap_rows(scratch, photos, repeats)

    def fed() -> Iterator[Row]:
        from epochs import fed_rows

        return fed_rows(scratch, photos, min(repeats, 3))

    def views() -> Iterator[Row]:
        from inputs import view_rows

        return view_rows(scratch, photos, repeats)

    def scan() -> Iterator[Row]:
        from inputs import scan_rows

        return scan_rows(paths)

    def kmeans() -> Iterator[Row]:
        from clusters import kmeans_rows

        return kmeans_rows(500_000, min(repeats, 3))

    def scoring() -> Iterator[Row]:
        from clusters import assign_rows, scoring_rows

        yield from scoring_rows(repeats)
        yield from assign_rows(repeats)

    def predict() -> Iterator[Row]:
        from masks_of import predict_rows

        return predict_rows(scratch, photos, min(repeats, 5))

    def recipe() -> Iterator[Row]:
        from masks_of import recipe_rows

        return recipe_rows(scratch, photos, min(repeats, 3))

    def evaluate() -> Iterator[Row]:
        from masks_of import evaluate_rows

        return evaluate_rows(scratch, photos, min(repeats, 5))

    def start() -> Iterator[Row]:
        from starts import start_rows

        return start_rows(repeats)

    def before() -> Iterator[Row]:
        from before import before_rows

        return before_rows(scratch, photos, (100, 400, images))

    def mask() -> Iterator[Row]:
        from starts import mask_rows

        return mask_rows(scratch, photos, repeats)

    return {
        "step": steps,
        "memory": memory,
        "epoch": epoch,
        "methods": methods,
        "decode": decode,
        "input": inputs,
        "fed": fed,
        "views": views,
        "kmeans": kmeans,
        "scoring": scoring,
        "predict": predict,
        "recipe": recipe,
        "evaluate": evaluate,
        "scan": scan,
        "start": start,
        "mask": mask,
        "growth": growth,
        "before": before,
    }


def gpu(results: Path, stages: list[str] | None, *, rehearse: bool) -> None:
    """The script for a GPU; a rehearsal's results are no results, but show what there would be."""
    from gpu import REHEARSAL, STAGES, measure_gpu, on_this_card

    unknown = set(stages or ()) - set(STAGES)
    if unknown:
        raise SystemExit(
            f"--stages: no {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}"
        )
    numbers = REHEARSAL if rehearse else on_this_card()
    with tempfile.TemporaryDirectory() as scratch:
        print(measure_gpu(numbers, Path(scratch), results, facts("drawn scenes"), stages))


def line(row: Row) -> str:
    """One line of the table."""
    digits = 2 if row.value < 20 else 0
    value = f"{row.value:.{digits}f} {row.unit} ({row.low:.{digits}f} to {row.high:.{digits}f})"
    sign = "<=" if row.better == "less" else ">="
    limit = "" if row.limit is None else f"{sign} {row.limit:g}"
    return f"{row.name:<72} {value:<34} {limit:<8} {row.verdict:<7} {row.note}"


def write(found: list[Row], folder: Path, photos: Path | None) -> None:
    """This run's rows by name beside those of earlier runs that were not measured now, and the history."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "speed.json"
    told = facts("photographs" if photos else "drawn scenes")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known |= {row.name: {**asdict(row), "verdict": row.verdict, **told} for row in found}
    path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    with (folder / "speed-history.jsonl").open("a", encoding="utf-8") as history:
        record = {**told, "rows": {row.name: round(row.value, 4) for row in found}}
        history.write(json.dumps(record) + "\n")


def facts(pictures: str) -> dict[str, str]:
    """When, where and of which revision."""
    return {
        "when": time.strftime("%Y-%m-%d"),
        "revision": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "pictures": pictures,
    }


if __name__ == "__main__":
    main()
