"""Too little to learn from, bad images among good ones, and predictions that are cut short."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import Child, Family
from labelled_scenes import write_labelled_scenes
from PIL import Image
from programs import Program, sabotage, slim, told_once
from tiny_runs import ending
from trials import Trials, fault

from densesiam_seg.datasets.scenes import scene
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.records import read_records
from densesiam_seg.io.run_directory import read_status
from densesiam_seg.peers.record import RECORD

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

MACHINE = ("--device", "cpu", "--precision", "fp32")
COMMON: tuple[object, ...] = (
    *(*MACHINE, "--threads", 1, "--workers", 0, "--image-size", 32, "--channels", 8),
    *("--backbone", "resnet18", "--weights", "none", "--cache", "none"),
)
SMALL = ("--clusters", 4, "--over-clusters", 6, "--epochs", 2)
STAGES = ("--prior", "mixture", "--features", "stages", "--freeze")
METHODS: dict[str, tuple[object, ...]] = {
    "plain": ("train", "--no-report", "--prior", "none", "--region-start", 0, *SMALL),
    "mixture": ("train", "--no-report", "--prior", "mixture", *SMALL),
    "stages": ("train", "--no-report", *STAGES, *SMALL),
    "pixsim": ("train", "--no-report", "--method", "pixsim", *SMALL),
    "simsiam": ("train", "--no-report", "--method", "simsiam", *SMALL),
    "picie": ("train", "--no-report", "--method", "picie", *SMALL),
    "mdc": ("train", "--no-report", "--method", "mdc", *SMALL),
    "pretrain": ("pretrain", "--categories", 5, "--grid", 2, "--epochs", 2),
    "pretrain of images": (
        *("pretrain", "--categories", 5, "--grid", 2, "--epochs", 1, "--image-weight", 1),
    ),
    "plain, 0 epochs": ("train", "--no-report", "--prior", "none", *SMALL, "--epochs", 0),
    "mixture, 0 epochs": ("train", "--no-report", "--prior", "mixture", *SMALL, "--epochs", 0),
    "stages, 0 epochs": ("train", "--no-report", *STAGES, *SMALL, "--epochs", 0),
    "picie, 0 epochs": ("train", "--no-report", "--method", "picie", *SMALL, "--epochs", 0),
    "2 clusters": ("train", "--no-report", "--prior", "mixture", *SMALL, "--clusters", 2),
    "batches of 1": (
        "train",
        "--no-report",
        "--prior",
        "none",
        "--region-start",
        0,
        *SMALL,
        "--batch-size",
        1,
    ),
    "fast": ("train", "--no-report", "--preset", "fast", *SMALL, "--epochs", 1),
    "paper": (
        "train",
        "--no-report",
        "--preset",
        "paper",
        *SMALL,
        "--batch-size",
        1,
        "--epochs",
        1,
    ),
}
SETS: dict[str, list[Any]] = {
    "one image": [scene(0, 0, 64)[0]],
    "three images": [scene(0, index, 64)[0] for index in range(3)],
    "equal images": [scene(0, 0, 64)[0]] * 4,
    "one colour": [np.full((40, 40, 3), 90)] * 4,
    "black": [np.zeros((40, 40, 3))] * 4,
    "colours": [np.full((40, 40, 3), 60 * index) for index in range(4)],
    "1x1": [np.full((1, 1, 3), 60 * index) for index in range(4)],
    "a single 1x1": [np.full((1, 1, 3), 60)],
    "1x500": [scene(0, index, 500)[0][:1] for index in range(3)],
}
QUICK = [
    ("stages", "one colour"),
    ("picie", "a single 1x1"),
    ("pretrain", "one image"),
    ("2 clusters", "black"),
    ("batches of 1", "1x500"),
    ("mdc", "one image"),
]
ALONE = {("mdc", "one image"), ("mdc", "a single 1x1")}
"""A batch of a single view whose last stage is one pixel: refused, as batch normalisation cannot take it."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of `SETS`."""
    root = tmp_path_factory.mktemp("sets")
    for name, arrays in SETS.items():
        (root / name).mkdir()
        for index, pixels in enumerate(arrays):
            Image.fromarray(np.asarray(pixels, np.uint8)).save(root / name / f"{index}.png")
    return root


def refused(found: Child, code: int, *words: object) -> None:
    """The one line of the error holds the words; what comes before it are reports of the work."""
    assert found.wait() == code, found.stderr
    line = told_once(found)
    assert all(str(word) in line for word in words), line


def finished(found: Child, run: Path) -> None:
    """The run has a model, and no loss and no share of a cluster is anything but a number."""
    assert found.wait() == 0, found.stderr
    assert "Traceback" not in found.stderr and "Warning" not in found.stderr
    assert read_status(run)["status"] == "done"
    for record in read_records(run / "metrics.jsonl"):
        numbers = [*record["losses"].values(), record["agreement"], *record.get("shares", [])]
        assert all(isinstance(number, float | int) for number in numbers), record
        if record.get("shares"):
            used = sum(share > 0 for share in record["shares"])
            assert record["clusters_in_use"] == used
    Segmenter.load(run, device="cpu")


@fault(
    "F10",
    "one image, equal ones, one colour, 1x1: all methods",
    "a finished run and finite numbers, or exit 3 with both numbers",
)
@pytest.mark.usefixtures("slim")
def test_little_to_learn_from(trials: Trials, program: Program, sets: Path, tmp_path: Path) -> None:
    pairs = [(method, images) for method in METHODS for images in SETS]
    # In full every second pair, as on a chess board, and those that are refused.
    wanted = {*pairs[::2], *ALONE} if trials.full else set(QUICK)
    chosen = [pair for pair in pairs if pair in wanted]
    for number, (method, images) in enumerate(chosen):
        with trials.trial(f"{method}, {images}"):
            command, *options = METHODS[method]
            run = tmp_path / str(number)
            found = program(command, sets / images, "--out", run, *COMMON, *options)
            if (method, images) in ALONE:
                refused(found, 3, "1 image", "32 pixels", "1 place")
                assert ending(run) == ("failed", 3)
            else:
                finished(found, run)


TOO_FEW: dict[str, tuple[tuple[object, ...], str, tuple[str, ...]]] = {
    # Options, images, and the numbers that are told.
    "a batch of 13": (("train", "--no-report", "--batch-size", 13, *SMALL), "three images", ("3 ", "13")),
    "a batch of 2 of one": (("pretrain", "--batch-size", 2), "one image", ("1 ", "2")),
    "the paper's batch": (
        ("train", "--no-report", "--preset", "paper", *SMALL), "three images", ("3 ", "256"),
    ),
    "4096 clusters of a mixture": (
        ("train", "--no-report", "--prior", "mixture", "--clusters", 4096), "three images", ("192", "4096"),
    ),
    "4096 clusters of stages": (
        ("train", "--no-report", *STAGES, "--clusters", 4096), "three images", ("48", "4096"),
    ),
    "4096 clusters of picie": (
        ("train", "--no-report", "--method", "picie", "--clusters", 4096), "three images", ("192", "4096"),
    ),
    "4096 clusters of mdc": (
        ("train", "--no-report", "--method", "mdc", "--clusters", 4096), "three images", ("192", "4096"),
    ),
}  # fmt: skip


@fault(
    "F10",
    "fewer images than a batch, fewer pixels than clusters",
    "exit 3 with both numbers, also in run.json",
)
def test_too_few(trials: Trials, program: Program, sets: Path, tmp_path: Path) -> None:
    for number, (name, (options, images, told)) in enumerate(TOO_FEW.items()):
        with trials.trial(name):
            command, *more = options
            run = tmp_path / str(number)
            found = program(command, sets / images, "--out", run, *COMMON, *more)
            refused(found, 3, *told)
            assert ending(run) == ("failed", 3)
            assert all(word in read_status(run)["reason"] for word in told)

    for command in ("train", "pretrain"):
        with trials.trial(f"{command} on no image"):
            (tmp_path / "none").mkdir(exist_ok=True)
            found = program(command, tmp_path / "none", "--out", tmp_path / "run")
            refused(found, 3, tmp_path / "none")
            assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def constant(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose features are the same everywhere."""
    network = copy.deepcopy(segmenter.network)
    assert network.encoder.decoder is not None
    with torch.no_grad():
        for parameter in network.encoder.decoder.parameters():
            parameter.fill_(0.5 if parameter.ndim == 1 else 0)
    other = Segmenter(network, segmenter.card, device="cpu", precision="fp32")
    return other.save(tmp_path_factory.mktemp("constant") / "model")


@fault(
    "F10",
    "read-outs and probes of few or equal features",
    "exit 3 with both numbers, or masks of the clusters there are",
)
def test_readouts(
    trials: Trials,
    program: Program,
    sets: Path,
    tmp_path: Path,
    model_folder: Path,
    constant: Path,
) -> None:
    """An image of one pixel becomes 32x32, which has 8x8 features."""
    single, colours = sets / "a single 1x1", sets / "colours"

    def predicted(model: Path, *options: object) -> tuple[Child, set[int]]:
        """And the ids in the masks."""
        out = tmp_path / str(trials.count)
        readout = (*options, "--fit-images", colours, "--fit-images", single)
        where = ("predict", colours, "--out", out, "--model", model)
        found = program(*where, *MACHINE, *readout)
        ids: set[int] = set()
        for path in sorted(out.glob("*.png")):
            with Image.open(path) as mask:
                assert mask.size == (40, 40)
                ids |= set(np.unique(np.asarray(mask)).tolist())
        return found, ids

    for readout in ("kmeans", "merge"):
        over = ("--over-clusters", 400) if readout == "merge" else ()
        with trials.trial(f"{readout}, fewer features than clusters"):
            found, ids = predicted(model_folder, "--readout", readout, "-k", 400, *over)
            refused(found, 3, "320", "400")
            assert not ids
        with trials.trial(f"{readout}, fewer distinct ones"):
            over = ("--over-clusters", 2) if readout == "merge" else ()
            found, ids = predicted(constant, "--readout", readout, "-k", 2, *over)
            refused(found, 3, "320", "1 of them distinct", "2 clusters")
            assert not ids
    with trials.trial("one cluster"):
        found, ids = predicted(constant, "--readout", "kmeans", "-k", 1)
        assert (found.wait(), ids) == (0, {0}), found.stderr
    with trials.trial("one cluster of a merge"):
        found, ids = predicted(model_folder, "--readout", "merge", "-k", 1, "--over-clusters", 9)
        assert (found.wait(), ids) == (0, {0}), found.stderr
    with trials.trial("a head whose clusters are not all there"):
        found, ids = predicted(constant)
        assert found.wait() == 2, "a head has no images to fit"
        found = program("predict", single, "--out", tmp_path / "m.png", "--model", constant)
        assert found.wait() == 0, found.stderr
        with Image.open(tmp_path / "m.png") as mask:
            assert mask.size == (1, 1)
    for count in (0, -1, 4097):
        with trials.trial(f"{count} clusters"):
            found, _ = predicted(model_folder, "--readout", "kmeans", f"--clusters={count}")
            refused(found, 2, count)
    with trials.trial("any number for one image"):
        options = ("--readout", "auto", "-k", "auto", "--fit-images", single)
        where = ("--out", tmp_path / "n.png", "--model", constant)
        refused(program("predict", single, *where, *options), 3, "64", "1 of them distinct")

    root = write_labelled_scenes(tmp_path / "scenes", train=1, val=1, side=32, seed=0)
    probe = ("--dataset", root / "scenes.toml", "--root", root, *MACHINE, "--json")
    with trials.trial("a probe with more clusters than features"):
        found = program("probe", model_folder, *probe, "--kind", "kmeans", "-k", 65)
        refused(found, 3, "64", "65")
    with trials.trial("a probe of equal features"):
        found = program("probe", constant, *probe, "--kind", "kmeans", "-k", 2)
        refused(found, 3, "64", "1 of them distinct", "2 clusters")
        found = program("probe", constant, *probe, "--kind", "linear")
        assert found.wait() == 0, found.stderr
        assert "NaN" not in found.stdout and "Infinity" not in found.stdout
        scores = json.loads(found.stdout)["linear"]["scores"]
        # The same everywhere is one class everywhere, the most frequent.
        assert sum(bool(iou) for iou in scores["iou"]) == 1
    with trials.trial("a probe with one cluster"):
        found = program("probe", model_folder, *probe, "--kind", "kmeans", "-k", 1)
        assert found.wait() == 0, found.stderr
        assert sum(map(sum, json.loads(found.stdout)["kmeans"]["counts"])) == 32 * 32


@pytest.fixture
def start(family: Family, model_folder: Path) -> Program:
    """Begin to predict the masks of a folder, with two threads."""

    def begin(images: Path, out: Path, *options: object) -> Child:
        where = ("--out", out, "--model", model_folder, *MACHINE)
        work = slim(["predict", images, *where, *options], sabotage("threads", number=2))
        (child,) = family.start(work)
        return child

    return begin


@pytest.fixture
def predict(start: Program) -> Program:
    """The same, to its end."""

    def run(*arguments: object) -> Child:
        child = start(*arguments)
        child.wait()
        return child

    return run


def write_images(folder: Path, count: int, height: int, width: int) -> dict[str, tuple[int, int]]:
    """Images of two shapes, and the size that each mask must have."""
    folder.mkdir()
    sizes = {}
    for index in range(count):
        size = (height, width) if index % 3 else (width, height)
        pixels = scene(4, index % 20, max(size))[0][: size[0], : size[1]]
        Image.fromarray(pixels).save(folder / f"{index:04}.png")
        sizes[f"{index:04}.png"] = (size[1], size[0])
    return sizes


def files_of(out: Path) -> dict[str, bytes]:
    """Everything that is not hidden, but for the record, which tells when a job began."""
    found = (path for path in out.iterdir() if path.name[0] != "." and path.name != RECORD)
    return {path.name: path.read_bytes() for path in found}


def whole(out: Path, sizes: dict[str, tuple[int, int]]) -> list[str]:
    """The masks there, every one of which opens, to its last pixel, and has its image's size; as do overlays."""
    masks = sorted(path.name for path in out.glob("*.png"))
    for name in masks:
        with Image.open(out / name) as mask:
            mask.load()
            assert (mask.mode, mask.size) == ("P", sizes[name])
    for path in out.glob("*_overlay.jpg"):
        with Image.open(path) as picture:
            picture.load()
            assert picture.size == sizes[path.name.replace("_overlay.jpg", ".png")]
    return masks


@fault(
    "F19",
    "a bad image among many (60, in full 1,000)",
    "all other masks, exit 9, failed.jsonl; a rerun makes the rest",
)
def test_one_bad_image(trials: Trials, tmp_path: Path, predict: Program) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    count = len(trials.several(60, 1000))
    sizes = write_images(images, count, 12, 16)
    bad = images / f"{count // 2:04}.png"
    sound = bad.read_bytes()
    bad.write_bytes(sound[: len(sound) // 2])

    with trials.trial("the first run"):
        found = predict(images, out)
        refused(found, 9, f"1 of {count:} images failed", bad)
        masks = whole(out, sizes)
        assert masks == sorted(sizes.keys() - {bad.name})
        (listed,) = read_records(out / "failed.jsonl")
        assert (listed["path"], listed["reason"]) == (str(bad), "truncated")
        times = {name: (out / name).stat().st_mtime_ns for name in masks}
    with trials.trial("a second run with --resume"):
        refused(predict(images, out, "--resume"), 9, f"1 of {count} images failed", bad)
        assert whole(out, sizes) == masks
    with trials.trial("a third one, when the image is mended"):
        bad.write_bytes(sound)
        found = predict(images, out, "--resume")
        assert found.wait() == 0, found.stderr
        assert whole(out, sizes) == sorted(sizes)
        assert not (out / "failed.jsonl").exists()
    with trials.trial("what was done was left as it is"):
        assert times == {name: (out / name).stat().st_mtime_ns for name in masks}
    with trials.trial("without --resume nothing is touched"):
        refused(predict(images, out), 2, "exists already")


@fault(
    "F19",
    "kill -9 in the middle of predict, with overlays and without",
    "no partial mask; --resume ends with the masks of a whole run",
)
def test_killed_predictions(
    trials: Trials, tmp_path: Path, predict: Program, start: Program
) -> None:
    images = tmp_path / "images"
    sizes = write_images(images, 24, 90, 120)
    reference = {}
    for overlays in ((), ("--overlay",)):
        out = tmp_path / f"whole{len(overlays)}"
        assert predict(images, out, *overlays).wait() == 0
        assert whole(out, sizes) == sorted(sizes)
        reference[overlays] = files_of(out)
    assert len(reference["--overlay",]) == 48

    draw, landed = random.Random(0), 0
    for n in trials.several(3, 20):
        with trials.trial(n):
            overlays = ("--overlay",) if n % 2 else ()
            out = tmp_path / str(n)
            for again in (False, True):  # the second one meets what the first has left
                enough = draw.randrange(0, 20) if not again else 22
                options = (*overlays, "--resume") if again else overlays
                found = start(images, out, *options)
                kill_after(found, out, enough, draw.random())
                assert found.wait() in (0, -signal.SIGKILL), found.stderr
                landed += found.wait() != 0
                done = whole(out, sizes) if out.is_dir() else []
                kept = files_of(out) if out.is_dir() else {}
                assert all(reference[overlays][name] == data for name, data in kept.items())
                if overlays:
                    stems = {name.removesuffix("_overlay.jpg") for name in kept}
                    assert all(name.removesuffix(".png") in stems for name in done)
            found = predict(images, out, *overlays, "--resume")
            assert found.wait() == 0, found.stderr
            assert files_of(out) == reference[overlays]
    with trials.trial("kills that came in time"):
        assert landed >= len(trials.several(3, 20)), landed


def kill_after(child: Child, out: Path, enough: int, chance: float) -> None:
    """End a child soon after it has written so many masks, if it has not ended by itself."""

    def written() -> bool:
        return child.status is not None or sum(1 for _ in out.glob("*.png")) >= enough

    child.until(written, 0.0005)
    time.sleep(0.004 * chance)
    child.send(signal.SIGKILL)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "half": lambda data: data[: len(data) // 2],
    "zeros at its end": lambda data: data[:-40] + bytes(40),
    "one byte short": lambda data: data[:-1],
    "one byte": lambda data: data[:1],
}


@fault(
    "F19",
    "masks and overlays as a power cut leaves them: empty, zeros",
    "--resume makes them again and says how many",
)
def test_damaged_masks(trials: Trials, tmp_path: Path, predict: Program) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    write_images(images, 6, 40, 60)
    assert predict(images, out, "--overlay").wait() == 0
    reference = files_of(out)
    for kind, damage in DAMAGES.items():
        for name in ("0002.png", "0003_overlay.jpg"):
            with trials.trial(f"{name} is {kind}"):
                (out / name).write_bytes(damage(reference[name]))
                found = predict(images, out, "--overlay", "--resume")
                assert found.wait() == 0, found.stderr
                assert "1 mask " in found.stderr and "5 kept" in found.stderr, found.stderr
                assert files_of(out) == reference
    with trials.trial("a file that is none of these masks"):
        (out / "0002.png").write_text("my notes")
        refused(predict(images, out, "--resume"), 2, "0002.png", "no mask")
        assert (out / "0002.png").read_text() == "my notes"
