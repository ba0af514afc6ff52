"""What the rows are scored on: a data set, the split that is learned from, the split that is scored, the protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from densesiam_seg.datasets.declaration import Dataset, load_dataset
from densesiam_seg.datasets.reader import Samples, samples
from densesiam_seg.demo import DECLARED, SETTINGS, write_dataset
from densesiam_seg.evaluation.protocol import PROTOCOLS, Protocol, prepare_image
from densesiam_seg.images.decode import image_size, load_image

SIDE = 160
SCENES = "scenes"
DATASETS = {"camvid": "camvid", "coco": "coco-stuff", SCENES: DECLARED}
"""The benchmark's names of its data sets, and the package's or the file below the root that declares one."""
SAMPLED = frozenset({"coco"})
"""Data sets of which any part will do: what a list asks for and is not there is passed over."""


@dataclass(frozen=True)
class Task:
    """Learn from the images of `train`, be scored on `scored`; as many clusters as there are classes."""

    name: str
    dataset: Dataset
    train: Samples
    scored: Samples
    protocol: Protocol
    side: int
    contents: str
    """Digest of every file of both splits, labels included; the splits' own digests cover names alone."""

    @property
    def clusters(self) -> int:
        return len(self.dataset.classes)

    def whole(self) -> Task:
        """The same without resizing and crop, where all images have one size and so the shorter side is known."""
        sides = {min(image_size(each.image)) for each in self.scored}
        assert len(sides) == 1, "images of one size"
        return replace(self, protocol=PROTOCOLS["full-image"], side=sides.pop())

    def training_images(self) -> list[Tensor]:
        """The images of `train`, uint8 (3, h, w), as the protocol shows them; no label is read."""
        return [
            prepare_image(load_image(each.image), self.protocol, self.side) for each in self.train
        ]

    def facts(self) -> dict[str, Any]:
        """What fixes the numbers, as JSON."""
        return {
            "dataset": self.dataset.title,
            "protocol": self.protocol.describe(self.side),
            "clusters": self.clusters,
            "scored": _facts(self.scored),
            "learned_from": _facts(self.train),
            "contents_digest": self.contents,
        }


def load_task(name: str, root: Path, split: str = "val", side: int | None = None) -> Task:
    """A data set of `DATASETS` below `root`, `picie` protocol at `side` px. Raises InputError where data are missing.

    The demo's scenes are drawn where they are not, always with the same seed.
    """
    declared: str | Path = DATASETS[name]
    side = side or SIDE
    if name == SCENES:
        declared, side = root / declared, SETTINGS["image_size"]
        if not declared.exists():
            write_dataset(root, seed=0)
    dataset = load_dataset(declared)
    train, scored = (
        samples(dataset, root, each, allow_missing=name in SAMPLED) for each in ("train", split)
    )
    contents = _contents(
        *(path for part in (train, scored) for s in part for path in (s.image, s.label))
    )
    return Task(name, dataset, train, scored, PROTOCOLS["picie"], side, contents)


def _facts(found: Samples) -> dict[str, Any]:
    return {"split": found.split, "images": len(found), "names_digest": found.digest}


@cache
def _contents(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def pictured(count: int, total: int) -> Iterable[int]:
    """The places of `count` pictures spread evenly over a set: chosen by nothing that is in them."""
    return sorted({(2 * place + 1) * total // (2 * count) for place in range(count)})
