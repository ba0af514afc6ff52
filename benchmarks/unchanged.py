"""Are results still what they were? This working tree against an earlier revision, in exact mode and in the fast one.

    python -P benchmarks/unchanged.py --base REVISION

Both revisions train every method, and pre-train, for a few steps on the same procedural scenes. With `--precision fp32`
the bytes of the models must be equal; with `auto` the loss of the first step may differ by `TOLERANCE` of itself, since
the fast mode is free in the order of its sums. Exits with 1 where either does not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOLERANCE = 0.02
"""Of the loss of the first step (of 1 where that is smaller), before rounding has moved the weights apart."""
CASES = {
    "densesiam": ("train", {"region_start": 0.0}),
    "densesiam, from a mixture": ("train", {"prior": "mixture"}),
    "densesiam, cosine": ("train", {"similarity": "cosine", "balance": "frequency"}),
    "pixsim": ("train", {"method": "pixsim", "balance": "none"}),
    "simsiam": ("train", {"method": "simsiam", "image_weight": 1.0, "pixel_weight": 0.0}),
    "picie": ("train", {"method": "picie", "optimizer": "adam", "learning_rate": 1e-4}),
    "mdc": ("train", {"method": "mdc", "optimizer": "adam", "learning_rate": 1e-4}),
    "pretrain": ("pretrain", {"features": "fpn"}),
    "pretrain, similarity": ("pretrain", {"correspondence": "feature-similarity"}),
    "pretrain, biased": ("pretrain", {"sampling": "biased"}),
}
COMMON = {
    "image_size": 96,
    "batch_size": 4,
    "weights": "none",
    "rate_scaling": "none",
    "threads": 1,
}
OFF = {"over_cluster_weight": 0.0, "segmentation_weight": 0.0, "region_weight": 0.0}


def main() -> None:
    """Run both revisions and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="HEAD", help="revision to compare with")
    parser.add_argument("--worker", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(outcomes(*arguments.worker)))
        return
    # Only here: where an earlier revision has its scenes is of no concern.
    from densesiam_seg.datasets.scenes import write_scenes

    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch, "base")
        base.mkdir()
        archive = subprocess.run(
            ["git", "archive", arguments.base], cwd=root, check=True, capture_output=True
        )
        subprocess.run(["tar", "x"], cwd=base, input=archive.stdout, check=True)
        write_scenes(Path(scratch, "scenes"), 12, seed=3, side=200, split="train")
        images = Path(scratch, "scenes", "images", "train")
        before = revision(base, images, Path(scratch, "before"))
        after = revision(root, images, Path(scratch, "after"))
    sys.exit(report(before, after))


def revision(root: Path, images: Path, scratch: Path) -> dict[str, Any]:
    """What the package in `root` computes, in a process of its own."""
    command = [sys.executable, "-P", __file__, "--worker", str(images), str(scratch)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root.parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("package") == str(root / "densesiam_seg" / "__init__.py"), "wrong revision"
    return found


def outcomes(images: Path, scratch: Path) -> dict[str, Any]:
    """Of every case: the model's digest in exact mode, and the first losses of both modes."""
    import densesiam_seg

    found: dict[str, Any] = {"package": densesiam_seg.__file__}
    for name, (command, settings) in CASES.items():
        off = OFF if settings.get("method") == "simsiam" else {}
        for precision in ("fp32", "auto"):
            out = scratch / f"{name}-{precision}"
            run = densesiam_seg.train if command == "train" else densesiam_seg.pretrain
            plain = {"prior": "none"} if command == "train" else {}
            run(
                images,
                out,
                **{**COMMON, **plain, **settings, **off, "epochs": 2, "precision": precision},
            )
            model = (out / "model" / "model.safetensors").read_bytes()
            records = (out / "metrics.jsonl").read_text(encoding="ascii").splitlines()
            found[f"{name} {precision}"] = {
                "sha256": hashlib.sha256(model).hexdigest(),
                "loss": json.loads(records[0])["losses"]["total"],
            }
    return found


def report(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print a line per case; returns how the process exits."""
    failed = False
    for name in CASES:
        equal = before[f"{name} fp32"] == after[f"{name} fp32"]
        old, new = before[f"{name} auto"]["loss"], after[f"{name} auto"]["loss"]
        apart = abs(new - old) / max(abs(old), 1.0)
        failed |= not equal or apart > TOLERANCE
        print(
            f"{name}: exact mode {'equal bytes' if equal else 'DIFFERENT BYTES'}; fast mode, first loss {old:.6f} "
            f"before, {new:.6f} now ({apart:.1e} apart)"
        )
    return int(failed)


if __name__ == "__main__":
    main()
