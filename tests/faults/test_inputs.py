"""Too little to learn from, bad images among good ones, and predictions that are cut short."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import Ended, Forks, forks
from labelled_scenes import write_labelled_scenes
from PIL import Image
from trials import Trials, fault

from densesiam_seg.datasets.scenes import scene
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.records import read_records
from densesiam_seg.io.run_directory import read_status

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

MACHINE = ("--device", "cpu", "--precision", "fp32")
COMMON: tuple[object, ...] = (
    *(*MACHINE, "--threads", 1, "--workers", 0, "--image-size", 32, "--channels", 8),
    *("--backbone", "resnet18", "--weights", "none", "--cache", "none"),
)
SMALL = ("--clusters", 4, "--over-clusters", 6, "--epochs", 2)
STAGES = ("--prior", "mixture", "--features", "stages", "--freeze")
METHODS: dict[str, tuple[object, ...]] = {
    "plain": ("train", "--prior", "none", "--region-start", 0, *SMALL),
    "mixture": ("train", "--prior", "mixture", *SMALL),
    "stages": ("train", *STAGES, *SMALL),
    "pixsim": ("train", "--method", "pixsim", *SMALL),
    "simsiam": ("train", "--method", "simsiam", *SMALL),
    "picie": ("train", "--method", "picie", *SMALL),
    "mdc": ("train", "--method", "mdc", *SMALL),
    "pretrain": ("pretrain", "--categories", 5, "--grid", 2, "--epochs", 2),
    "pretrain of images": (
        *("pretrain", "--categories", 5, "--grid", 2, "--epochs", 1, "--image-weight", 1),
    ),
    "plain, 0 epochs": ("train", "--prior", "none", *SMALL, "--epochs", 0),
    "mixture, 0 epochs": ("train", "--prior", "mixture", *SMALL, "--epochs", 0),
    "stages, 0 epochs": ("train", *STAGES, *SMALL, "--epochs", 0),
    "picie, 0 epochs": ("train", "--method", "picie", *SMALL, "--epochs", 0),
    "2 clusters": ("train", "--prior", "mixture", *SMALL, "--clusters", 2),
    "batches of 1": ("train", "--prior", "none", "--region-start", 0, *SMALL, "--batch-size", 1),
    "fast": ("train", "--preset", "fast", *SMALL, "--epochs", 1),
    "paper": ("train", "--preset", "paper", *SMALL, "--batch-size", 1, "--epochs", 1),
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
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks(tmp_path_factory.mktemp("forks")) as found:
        yield found


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of `SETS`."""
    root = tmp_path_factory.mktemp("sets")
    for name, arrays in SETS.items():
        (root / name).mkdir()
        for index, pixels in enumerate(arrays):
            Image.fromarray(np.asarray(pixels, np.uint8)).save(root / name / f"{index}.png")
    return root


def refused(found: Ended, code: int, *words: object) -> None:
    """One line on stderr that begins as errors do and holds the words; what comes before it are reports of the work."""
    assert found.code == code, found
    *_, last = found.error.splitlines()
    assert last.startswith("error["), found.error
    assert all(str(word) in last for word in words), last
    assert "Traceback" not in found.error


def finished(found: Ended, run: Path) -> None:
    """The run has a model, and no loss and no share of a cluster is anything but a number."""
    assert found.code == 0, found
    assert "Traceback" not in found.error and "Warning" not in found.error
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
def test_little_to_learn_from(trials: Trials, program: Forks, sets: Path, tmp_path: Path) -> None:
    pairs = [(method, images) for method in METHODS for images in SETS]
    for number, (method, images) in enumerate(pairs if trials.full else QUICK):
        with trials.trial(f"{method}, {images}"):
            command, *options = METHODS[method]
            run = tmp_path / str(number)
            found = program.run(command, sets / images, "--out", run, *COMMON, *options)
            if (method, images) in ALONE:
                refused(found, 3, "1 image", "32 pixels", "1 place")
                assert read_status(run)["exit_code"] == 3
            else:
                finished(found, run)


TOO_FEW: dict[str, tuple[tuple[object, ...], str, tuple[str, ...]]] = {
    # Options, images, and the numbers that are told.
    "a batch of 13": (("train", "--batch-size", 13, *SMALL), "three images", ("3 ", "13")),
    "a batch of 2 of one": (("pretrain", "--batch-size", 2), "one image", ("1 ", "2")),
    "the paper's batch": (
        ("train", "--preset", "paper", *SMALL), "three images", ("3 ", "256"),
    ),
    "4096 clusters of a mixture": (
        ("train", "--prior", "mixture", "--clusters", 4096), "three images", ("192", "4096"),
    ),
    "4096 clusters of stages": (
        ("train", *STAGES, "--clusters", 4096), "three images", ("48", "4096"),
    ),
    "4096 clusters of picie": (
        ("train", "--method", "picie", "--clusters", 4096), "three images", ("192", "4096"),
    ),
    "4096 clusters of mdc": (
        ("train", "--method", "mdc", "--clusters", 4096), "three images", ("192", "4096"),
    ),
}  # fmt: skip


@fault(
    "F10",
    "fewer images than a batch, fewer pixels than clusters",
    "exit 3 with both numbers, also in run.json",
)
def test_too_few(trials: Trials, program: Forks, sets: Path, tmp_path: Path) -> None:
    for number, (name, (options, images, told)) in enumerate(TOO_FEW.items()):
        with trials.trial(name):
            command, *more = options
            run = tmp_path / str(number)
            found = program.run(command, sets / images, "--out", run, *COMMON, *more)
            refused(found, 3, *told)
            status = read_status(run)
            assert (status["status"], status["exit_code"]) == ("failed", 3)
            assert all(word in status["reason"] for word in told)

    for command in ("train", "pretrain"):
        with trials.trial(f"{command} on no image"):
            (tmp_path / "none").mkdir(exist_ok=True)
            found = program.run(command, tmp_path / "none", "--out", tmp_path / "run")
            refused(found, 3, tmp_path / "none")
            assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def constant(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose features are the same everywhere."""
    network = copy.deepcopy(segmenter.network)
    assert network.encoder.decoder is not None
    with torch.no_grad():
        for parameter in network.encoder.decoder.parameters():
            parameter.zero_()
    other = Segmenter(network, segmenter.card, device="cpu", precision="fp32")
    return other.save(tmp_path_factory.mktemp("constant") / "model")


@fault(
    "F10",
    "read-outs and probes of few or equal features",
    "exit 3 with both numbers, or masks of the clusters there are",
)
def test_readouts(
    trials: Trials,
    program: Forks,
    sets: Path,
    tmp_path: Path,
    model_folder: Path,
    constant: Path,
) -> None:
    """An image of one pixel becomes 32x32, which has 8x8 features."""
    single, colours = sets / "a single 1x1", sets / "colours"

    def predicted(model: Path, *options: object) -> tuple[Ended, set[int]]:
        """And the ids in the masks."""
        out = tmp_path / str(trials.count)
        readout = (*options, "--fit-images", colours, "--fit-images", single)
        where = ("predict", colours, "--out", out, "--model", model)
        found = program.run(*where, *MACHINE, *readout)
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
        assert (found.code, ids) == (0, {0}), found
    with trials.trial("one cluster of a merge"):
        found, ids = predicted(model_folder, "--readout", "merge", "-k", 1, "--over-clusters", 9)
        assert (found.code, ids) == (0, {0}), found
    with trials.trial("a head whose clusters are not all there"):
        found, ids = predicted(constant)
        assert found.code == 2, "a head has no images to fit"
        found = program.run("predict", single, "--out", tmp_path / "m.png", "--model", constant)
        assert found.code == 0, found
        with Image.open(tmp_path / "m.png") as mask:
            assert mask.size == (1, 1)
    for count in (0, -1, 4097):
        with trials.trial(f"{count} clusters"):
            found, _ = predicted(model_folder, "--readout", "kmeans", f"--clusters={count}")
            refused(found, 2, count)
    with trials.trial("any number for one image"):
        options = ("--readout", "auto", "-k", "auto", "--fit-images", single)
        where = ("--out", tmp_path / "n.png", "--model", constant)
        refused(program.run("predict", single, *where, *options), 3, "64", "1 of them distinct")

    root = write_labelled_scenes(tmp_path / "scenes", train=1, val=1, side=32, seed=0)
    probe = ("--dataset", root / "scenes.toml", "--root", root, *MACHINE, "--json")
    with trials.trial("a probe with more clusters than features"):
        found = program.run("probe", model_folder, *probe, "--kind", "kmeans", "-k", 65)
        refused(found, 3, "64", "65")
    with trials.trial("a probe of equal features"):
        found = program.run("probe", constant, *probe, "--kind", "kmeans", "-k", 2)
        refused(found, 3, "64", "1 of them distinct", "2 clusters")
        found = program.run("probe", constant, *probe, "--kind", "linear")
        assert found.code == 0, found
        assert "NaN" not in found.out and "Infinity" not in found.out
        scores = json.loads(found.out)["linear"]["scores"]
        # The same everywhere is one class everywhere, the most frequent.
        assert sum(bool(iou) for iou in scores["iou"]) == 1
    with trials.trial("a probe with one cluster"):
        found = program.run("probe", model_folder, *probe, "--kind", "kmeans", "-k", 1)
        assert found.code == 0, found
        assert sum(map(sum, json.loads(found.out)["kmeans"]["counts"])) == 32 * 32
