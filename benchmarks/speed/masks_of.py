"""Rows about predict and evaluate: all their work over the forward passes of the same images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from material import jpegs, labels
from measure import Row, alternate, ratio_row
from torch import Tensor

from densesiam_seg.card import ModelCard
from densesiam_seg.colour import normalise
from densesiam_seg.datasets import load_dataset, samples
from densesiam_seg.devices import available_cores
from densesiam_seg.evaluation import evaluate
from densesiam_seg.model import Architecture, build_network
from densesiam_seg.prediction import plan, predict_events
from densesiam_seg.protocol import PROTOCOLS, shown
from densesiam_seg.scan import scan
from densesiam_seg.segmenter import Segmenter
from densesiam_seg.workers import on_own_cores

IMAGES = 101
SIZE = (480, 360)
CLASSES = 11


def predict_rows(scratch: Path, photos: Path | None, repeats: int) -> Iterator[Row]:
    """From JPEGs on the disk to PNGs on the disk; all cores, wall time."""
    folder, segmenter = scratch / "val", untrained()
    paths = jpegs(folder, IMAGES, SIZE, photos)
    prepared = [segmenter.normalised(segmenter.read(path)[0]) for path in paths]

    def whole() -> None:
        work = plan(scan([folder]), scratch / "masks", overwrite=True)
        assert all(result.error is None for result in predict_events(segmenter, work))

    ours, bare = alternate(whole, lambda: forward(segmenter, prepared), repeats=repeats)
    yield ratio_row(
        f"predict a folder of {SIZE[0]}x{SIZE[1]} JPEGs / its forward passes",
        ours,
        bare,
        1.3,
        note=f"{IMAGES} images, size 160, {available_cores()} cores, {IMAGES / min(ours):.0f} images/s",
    )


def evaluate_rows(scratch: Path, photos: Path | None, repeats: int) -> Iterator[Row]:
    """From JPEGs and label PNGs on the disk to scores; all cores, wall time."""
    root, segmenter = scratch / "camvid", untrained()
    paths = jpegs(root / "images" / "val", IMAGES, SIZE, photos)
    labels(root / "labels" / "val", [path.stem for path in paths], SIZE, CLASSES)
    dataset = load_dataset("camvid")
    for name, limit in (("picie", 1.25), ("full-image", None)):
        protocol = PROTOCOLS[name]
        pictures = [shown(s, dataset, protocol, 160)[0] for s in samples(dataset, root).items]
        prepared = [normalise(picture[None].float().div_(255.0)) for picture in pictures]
        ours, bare = alternate(
            lambda name=name: evaluate("camvid", root, segmenter, protocol=name),
            lambda prepared=prepared: forward(segmenter, prepared),
            repeats=repeats,
        )
        note = f"{IMAGES} images, {available_cores()} cores, {IMAGES / min(ours):.0f} images/s"
        yield ratio_row(f"evaluate, {name} / its forward passes", ours, bare, limit, note=note)


def untrained() -> Segmenter:
    """A ResNet-18-FPN of image size 160 with random weights."""
    torch.set_num_threads(available_cores())
    architecture = Architecture(clusters=27)
    return Segmenter(build_network(architecture, 0), ModelCard(architecture, 160), device="cpu")


def forward(segmenter: Segmenter, prepared: list[Tensor]) -> None:
    """The network alone, on as many cores in the same way."""
    for _ in on_own_cores(segmenter.logits, prepared):
        pass
