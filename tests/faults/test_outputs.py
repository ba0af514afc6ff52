"""Files beside masks, and exports, that a signal or a full disk cuts off."""

from __future__ import annotations

import os
import random
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from children import Child, Family
from disks import mounted
from PIL import Image
from programs import sabotage, slim, told_once
from trials import Trials, fault

from densesiam_seg.datasets.scenes import scene
from densesiam_seg.io.files import remove
from densesiam_seg.peers.record import RECORD

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

MACHINE = ("--device", "cpu", "--precision", "fp32")
GRADES = ("--confidence", "--entropy", "--min-confidence", "0.3")
KINDS = {
    "all beside the mask": ("--legend", "--npy", *GRADES),
    "TIFF": ("--format", "tiff", "--overlay", *GRADES),
    "arrays": ("--format", "npy"),
    "single clusters": ("--only", "0,cluster_03"),
}
SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM}
"""With the status that each ends the program with."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(12):
        Image.fromarray(scene(4, index, 120)[0][: 90 + index % 2]).save(folder / f"{index:02}.png")
    return folder


def begun(family: Family, *arguments: object) -> Child:
    """The program with two threads."""
    (child,) = family.start(slim((*arguments, *MACHINE), sabotage("threads", number=2)))
    return child


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything below a folder that is not hidden, but for the record, which tells when a job began."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if path.name != RECORD
    }


def leftovers(folder: Path) -> list[Path]:
    """What is being made there, or was given up."""
    return list(folder.glob(".tmp-*"))


def cut(child: Child, folder: Path, enough: int, number: int) -> int:
    """Send a signal when there are so many files below a folder, or at its end; how the child ended."""

    def written() -> bool:
        return child.status is not None or sum(len(each[2]) for each in os.walk(folder)) >= enough

    child.until(written, 0.0005)
    child.send(number)
    return child.wait()


Predict = Callable[..., Child]
"""Begins a prediction into a folder, with further options."""


@pytest.fixture
def predict(family: Family, model_folder: Path, images: Path, kind: str) -> Predict:
    """`predict` with the other files of a kind."""

    def begin(out: Path, *more: str) -> Child:
        where = ("predict", images, "--out", out, "--model", model_folder)
        return begun(family, *where, *KINDS[kind], *more)

    return begin


@pytest.mark.parametrize("kind", KINDS)
@fault(
    "F19",
    "kill -9 and SIGTERM in predict with its other files",
    "every file is whole; --resume ends with those of a whole run",
)
def test_cut_predictions(trials: Trials, predict: Predict, tmp_path: Path) -> None:
    assert predict(tmp_path / "whole").wait() == 0
    reference = files_of(tmp_path / "whole")
    draw, landed = random.Random(0), 0
    for n in trials.several(1, 10):
        for number, status in SIGNALS.items():
            with trials.trial(f"{n}, {number.name}"):
                out = tmp_path / f"{n} {number.name}"
                ended = cut(predict(out), out, draw.randrange(1, len(reference) - 5), number)
                assert ended in (0, status)
                landed += ended != 0
                kept = files_of(out)
                assert kept.items() <= reference.items()
                if number == signal.SIGTERM:
                    assert not leftovers(out)
                again = predict(out, "--resume")
                assert again.wait() == 0, again.stderr
                assert files_of(out) == reference
    with trials.trial("signals that came in time"):
        assert landed, landed


@pytest.mark.parametrize("kind", KINDS)
@fault(
    "F3", "predict with its other files, on a disk that fills", "exit 5, all whole; then resumed"
)
def test_full_disk(trials: Trials, predict: Predict, tmp_path: Path) -> None:
    assert predict(tmp_path / "whole").wait() == 0
    reference = files_of(tmp_path / "whole")
    pages = sum(-(-len(data) // 4096) for data in reference.values())
    draw = random.Random(0)
    with mounted(tmp_path / "disk", f"size={4 * (pages + 20)}k") as disk:
        for n in trials.several(2, 10):
            with trials.trial(n):
                out, filler = disk / "out", disk / "filler"
                filler.write_bytes(bytes(4096 * (draw.randrange(pages - 2) + 20)))
                child = predict(out)
                assert child.wait() == 5, child.stderr
                told_once(child, "output")
                assert "No space" in child.stderr
                assert files_of(out).items() <= reference.items() and not leftovers(out)
                filler.unlink()
                assert predict(out, "--resume").wait() == 0
                assert files_of(out) == reference
                shutil.rmtree(out)


EXPORTS = {
    "folder": ("masks", ("--format", "hf"), "made"),
    "zip": ("masks", ("--format", "cvat"), "made.zip"),
    "model": ("model", ("--format", "torch"), "made"),
}


def made(place: Path) -> object:
    """The content of an export, without the times that a zip file has; the names alone of a model's files."""
    if place.is_dir():
        found = files_of(place)
        return sorted(found) if "model.json" in found else found
    with zipfile.ZipFile(place) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("kind", EXPORTS)
@fault(
    "F19",
    "kill -9, SIGTERM and a full disk in an export",
    "whole or nothing; a retry gives that of a whole run",
)
def test_cut_exports(
    trials: Trials, family: Family, model_folder: Path, images: Path, tmp_path: Path, kind: str
) -> None:
    what, options, name = EXPORTS[kind]
    machine = () if what == "model" else MACHINE
    inputs = () if what == "model" else (images,)

    def export(folder: Path) -> Child:
        given = ("export", what, model_folder, *inputs, *options, "--out", folder / name, *machine)
        (child,) = family.start(slim(given, sabotage("threads", number=2)))
        return child

    reference: object = ["model.json", "model.pt2"]
    if what == "masks":
        (tmp_path / "whole").mkdir()
        assert export(tmp_path / "whole").wait() == 0
        reference = made(tmp_path / "whole" / name)
    draw, landed = random.Random(0), 0
    for n in trials.several(1, 5):
        # Of a model only the first, unless in full: it takes seconds.
        for number, status in list(SIGNALS.items())[: 2 if what == "masks" or trials.full else 1]:
            with trials.trial(f"{n}, {number.name}"):
                folder = tmp_path / f"{n} {number.name}"
                folder.mkdir()
                child = export(folder)
                ended = cut(child, folder, 1 if what == "model" else draw.randrange(1, 20), number)
                landed += ended != 0
                if (folder / name).exists():
                    assert made(folder / name) == reference
                else:
                    assert ended == status, child.stderr
                if number == signal.SIGTERM:
                    assert not leftovers(folder)
                remove(folder / name)
                assert export(folder).wait() == 0
                assert made(folder / name) == reference
    with trials.trial("signals that came in time"):
        assert landed, landed
    with mounted(tmp_path / "disk", "size=60k") as disk, trials.trial("a full disk"):
        child = export(disk)
        assert child.wait() == 5, child.stderr
        told_once(child, "output")
        assert list(disk.iterdir()) == []
