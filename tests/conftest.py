"""Settings of the whole test run, and what several files need: tiny images, tiny settings, slim networks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from densesiam_seg.inference.segmenter import Segmenter

# Threads that wait for each other on a busy machine cost the tests' small tensors ten times their work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

IMAGES = 12
SETTINGS: dict[str, Any] = {
    "image_size": 32,
    "batch_size": 4,
    "channels": 16,
    "clusters": 4,
    "over_clusters": 6,
    "epochs": 3,
    "weights": "none",
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "workers": 0,
}


@contextmanager
def slim_resnets() -> Iterator[None]:
    """Every ResNet is a network of the same strides and a ten-thousandth of their size, in this block.

    A run of nine steps then takes a fraction of a second; each step and save of a ResNet-18 takes as long.
    """
    import torchvision
    from torch import nn

    from densesiam_seg.network.backbones import TORCHVISION

    def stage(source: int, target: int, stride: int) -> nn.Sequential:
        convolution = nn.Conv2d(source, target, 3, stride, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(target), nn.ReLU())

    def slim(weights: None = None) -> SimpleNamespace:
        parts: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(3, 4, 3, 2, 1, bias=False),
            "bn1": nn.BatchNorm2d(4),
            "relu": nn.ReLU(),
            "maxpool": nn.MaxPool2d(3, 2, 1),
        }
        for number, (source, target) in enumerate(((4, 4), (4, 8), (8, 8), (8, 16)), 1):
            parts[f"layer{number}"] = stage(source, target, 1 if number == 1 else 2)
        return SimpleNamespace(**parts)

    with pytest.MonkeyPatch.context() as patch:
        for name, declared in TORCHVISION.items():
            if declared.path[0][0] == "conv1":
                patch.setitem(TORCHVISION, name, replace(declared, channels=(4, 8, 8, 16)))
                patch.setattr(torchvision.models, name, slim)
        yield


@pytest.fixture(scope="session", name="slim_resnets")
def _slim_resnets() -> Callable[[], AbstractContextManager[None]]:
    return slim_resnets


@pytest.fixture
def slim() -> Iterator[None]:
    """Slim backbones for one test."""
    with slim_resnets():
        yield


@pytest.fixture(autouse=True)
def _no_room_for_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--cache auto` finds no room on the disk: no test leaves images or features in the folder it is started in."""
    monkeypatch.setattr("densesiam_seg.images.store.free_space", lambda folder: 0)
    monkeypatch.setattr("densesiam_seg.methods.stage_cache.free_space", lambda folder: 0)


@pytest.fixture(scope="session")
def tiny_settings() -> dict[str, Any]:
    """Training settings for `image_folder`: three epochs of three steps, the last one with the region loss."""
    return dict(SETTINGS)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve procedural scenes of 64 pixels, half of them JPEG; for reading only."""
    from PIL import Image

    from densesiam_seg.datasets.scenes import scene

    folder = tmp_path_factory.mktemp("images")
    for index in range(IMAGES):
        pixels, _ = scene(0, index, 64)
        Image.fromarray(pixels).save(folder / f"{index:02}.{'png' if index % 2 else 'jpg'}")
    return folder


@pytest.fixture(scope="module")
def slim_module() -> Iterator[None]:
    """Slim backbones for a whole file."""
    with slim_resnets():
        yield


@pytest.fixture(scope="module")
def segmenter(slim_module: None) -> Segmenter:
    """An untrained model of 5 clusters, all of which show; its batch statistics are those of noisy single colours."""
    import torch

    from densesiam_seg.inference.model_card import ModelCard
    from densesiam_seg.inference.segmenter import Segmenter
    from densesiam_seg.network.model import Architecture, build_network

    architecture = Architecture(channels=8, clusters=5, over_clusters=6)
    network = build_network(architecture, seed=1).train()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(30):
            colours = torch.randn(4, 3, 1, 1, generator=draw)
            network(colours + 0.5 * torch.randn(4, 3, 32, 32, generator=draw))
    card = ModelCard(architecture, 32, clusters=5)
    return Segmenter(network, card, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def model_folder(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of that model; for reading only."""
    return segmenter.save(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def small_demo(slim: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration with eight scenes to learn from and four held out, 48 pixels each, one epoch."""
    from densesiam_seg import demo

    settings = {"image_size": 32, "batch_size": 4, "epochs": 1, "channels": 8, "threads": 1}
    monkeypatch.setattr(demo, "SIDE", 48)
    monkeypatch.setattr(demo, "TRAINING_SCENES", 8)
    monkeypatch.setattr(demo, "HELD_OUT_SCENES", 4)
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS | settings | {"device": "cpu"})


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The program in this process: arguments → exit code, stdout, stderr."""
    from densesiam_seg.cli.app import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["densesiam-seg", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        out, error = capsys.readouterr()
        return end.value.code, out, error

    return run
