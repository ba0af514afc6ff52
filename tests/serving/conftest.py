"""A page that is served to the tests of its parts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from asker import Asker

from densesiam_seg.images.scan import scan
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.serving.server import Server
from densesiam_seg.serving.view import View


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    """A model of five clusters that may be edited."""
    return Path(shutil.copytree(model_folder, tmp_path / "a model"))


@pytest.fixture
def pictures(image_folder: Path, tmp_path: Path) -> Path:
    """Three images in a folder of their own, one of them damaged."""
    folder = tmp_path / "some pictures"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(image_folder / "00.jpg", folder / "a <b>&.jpg")
    shutil.copy(image_folder / "01.png", folder / "sub" / "c.png")
    (folder / "damaged.jpg").write_bytes((image_folder / "02.jpg").read_bytes()[:600])
    return folder


@pytest.fixture
def view(model: Path, pictures: Path, segmenter: Segmenter) -> View:
    return View(model, segmenter, scan([pictures], merge=False))


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def ask(server: Server, view: View) -> Iterator[Asker]:
    """Requests to a server that is open."""
    with server.open(view):
        yield Asker(server.server_port, server.token)
