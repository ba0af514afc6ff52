"""Labelled scenes with their declaration, for tests of what reads a data set."""

from __future__ import annotations

from pathlib import Path

from densesiam_seg.datasets.scenes import write_scenes
from densesiam_seg.demo import scenes_toml


def write_labelled_scenes(folder: Path, *, train: int, val: int, side: int, seed: int) -> Path:
    """Scenes of `side` pixels to learn from and to score, and their `scenes.toml`; returns the folder."""
    write_scenes(folder, train, seed=seed, side=side, split="train")
    write_scenes(folder, val, seed=seed, side=side, split="val", first=train)
    (folder / "scenes.toml").write_text(scenes_toml())
    return folder
