"""Rows about start-up: what a command takes before its work begins."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from material import jpegs
from measure import Row, alternate, ratio_row

from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import build_network

PROGRAM = str(Path(sys.executable).with_name("densesiam-seg"))
COMMANDS = {
    "--help": ["--help"],
    "--version": ["--version"],
    "a wrong path": ["train", "no/such/folder"],
    "predict without a model": ["predict", "no/such.jpg", "--model", "no/such/model"],
}
MODELS = {
    "the default recipe's model": Architecture(
        "timm:tf_efficientnet_lite0", over_clusters=0, features="stages", mixture=True
    ),
    "a ResNet-18 from scratch": Architecture("resnet18", mixture=True),
}
"""Both with PAMR, as `train` writes them."""


def start_rows(repeats: int) -> Iterator[Row]:
    """Wall time of whole processes, beside an interpreter that imports nothing and one that imports torch."""

    def run(command: list[str]) -> None:
        subprocess.run(command, capture_output=True, check=False)

    works = [
        lambda: run([sys.executable, "-c", ""]),
        lambda: run([sys.executable, "-c", "import torch"]),
        *(
            lambda arguments=arguments: run([PROGRAM, *arguments])
            for arguments in COMMANDS.values()
        ),
    ]
    times = alternate(*works, repeats=repeats, clock=time.perf_counter)
    for name, seconds in zip(["python alone", "import torch", *COMMANDS], times, strict=True):
        middle = sorted(seconds)[len(seconds) // 2]
        yield Row(f"start-up: {name}", middle, min(seconds), max(seconds), "s")


def mask_rows(scratch: Path, photos: Path | None, repeats: int) -> Iterator[Row]:
    """Wall time of `predict` of one picture, from the command to the mask on the disk, over that of importing torch."""
    (picture,) = jpegs(scratch / "one", 1, (480, 360), photos)
    program = [sys.executable, "-P", "-m", "densesiam_seg", "predict", str(picture), "--overwrite"]
    commands = [[sys.executable, "-c", "import torch"]]
    for number, architecture in enumerate(MODELS.values()):
        model = _saved(architecture, scratch / f"model-{number}")
        mask = scratch / f"{number}.png"
        commands.append([*program, "--model", str(model), "--out", str(mask)])

    def run(command: list[str]) -> None:
        subprocess.run(command, capture_output=True, check=True)

    works = [lambda command=command: run(command) for command in commands]
    alone, *times = alternate(*works, repeats=repeats, clock=time.perf_counter)
    for name, seconds in zip(MODELS, times, strict=True):
        middle = sorted(seconds)[len(seconds) // 2]
        note = f"{middle:.2f} s"
        yield ratio_row(f"mask: predict by {name} / import torch", seconds, alone, 1.35, note=note)


def _saved(architecture: Architecture, folder: Path) -> Path:
    """A model directory with random weights, whose clusters of appearance are spread as fitted ones are."""
    network = build_network(architecture, seed=1)
    assert network.mixture is not None
    network.mixture.centres.copy_(torch.randn_like(network.mixture.centres))
    card = ModelCard(architecture, 160, clusters=architecture.clusters, refine="pamr")
    return Segmenter(network, card, device="cpu").save(folder)
