"""Checkpoints of a made-up run, each of whose parts tells its step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from densesiam_seg.training.checkpoint import load_checkpoint, save_checkpoint


def tensors_of(step: int, size: int = 4) -> dict[str, Tensor]:
    return {"weight": torch.full((size,), float(step)), "count": torch.tensor(step)}


def save(folder: Path, step: int, size: int = 4) -> Path:
    return save_checkpoint(folder, tensors_of(step, size), {"at": step}, step=step)


def newest(folder: Path) -> int | None:
    """The step that loads, after a check that all of its parts belong together."""
    loaded = load_checkpoint(folder)
    if loaded is None:
        return None
    assert loaded.state == {"at": loaded.step}
    assert set(loaded.tensors) == {"weight", "count"}
    assert int(loaded.tensors["count"]) == loaded.step
    assert bool((loaded.tensors["weight"] == loaded.step).all())
    return loaded.step


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
