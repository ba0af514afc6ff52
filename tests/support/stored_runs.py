"""The folder of a run that nobody trained: a model, images, records, settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from densesiam_seg.images.scan import scan
from densesiam_seg.io.records import write_records
from densesiam_seg.io.run_directory import write_status


def store_run(folder: Path, model: Path, images: Path, epochs: int = 2) -> Path:
    """A finished run in `folder` with a copy of a model, trained on `images`; returns it."""
    shutil.copytree(model, folder / "model")
    manifest = scan([images])
    (folder / "dataset.json").write_text(json.dumps(manifest.to_dict()))
    (folder / "config.toml").write_text('# preset fast\nepochs = 2\nweights = "none"\n')
    (folder / "env.json").write_text('{"python": "3.11.7", "cuda": [], "packages": {"torch": "2"}}')
    steps: list[dict[str, Any]] = [
        {"record": "step", "step": step, "losses": {"pixel": 1 / step, "total": 2 / step}}
        for step in range(1, 3 * epochs + 1)
    ]
    ends: list[dict[str, Any]] = [
        {
            "record": "epoch", "step": 3 * epoch + 3, "epoch": epoch, "losses": {"pixel": 0.5, "total": 1},
            "agreement": 0.9, "clusters_in_use": 4, "entropy": 0.8, "shares": [0.3] * 5, "spread": None,
        }
        for epoch in range(epochs)
    ]  # fmt: skip
    write_records(folder / "metrics.jsonl", [*steps, *ends])
    write_status(folder, "done", exit_code=0)
    return folder
