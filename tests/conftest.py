"""Settings of the whole test run, and what several files need: tiny images, tiny settings, slim networks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from densesiam_seg.inference.segmenter import Segmenter

# Threads that wait for each other on a busy machine cost the tests' small tensors ten times their work.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def slim() -> Iterator[None]:
    """Slim backbones for one test."""
    from slim import slim_resnets

    with slim_resnets():
        yield


@pytest.fixture(scope="module")
def slim_module() -> Iterator[None]:
    """Slim backbones for a whole file."""
    from slim import slim_resnets

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
    return {
        "image_size": 32, "batch_size": 4, "channels": 16, "clusters": 4, "over_clusters": 6, "epochs": 3,
        "weights": "none", "device": "cpu", "precision": "fp32", "threads": 1, "workers": 0,
    }  # fmt: skip


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve procedural scenes of 64 pixels, half of them JPEG; for reading only."""
    from PIL import Image

    from densesiam_seg.datasets.scenes import scene

    folder = tmp_path_factory.mktemp("images")
    for index in range(12):
        pixels, _ = scene(0, index, 64)
        Image.fromarray(pixels).save(folder / f"{index:02}.{'png' if index % 2 else 'jpg'}")
    return folder


@pytest.fixture(scope="module")
def segmenter(slim_module: None) -> Segmenter:
    """An untrained model of 5 clusters, all of which show; its batch statistics are those of noisy single colours."""
    import torch

    from densesiam_seg.inference.model_card import ModelCard
    from densesiam_seg.inference.segmenter import Segmenter
    from densesiam_seg.network.architecture import Architecture
    from densesiam_seg.network.model import build_network

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
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration with eight scenes to learn from and four held out, 48 pixels each, one epoch."""
    from densesiam_seg import demo

    settings = {"image_size": 32, "batch_size": 4, "epochs": 1, "threads": 1}
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
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as end:
                main()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        assert isinstance(end.value.code, int)
        out, error = capsys.readouterr()
        return end.value.code, out, error

    return run
