"""`probe`: both numbers of frozen features on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from densesiam_seg.cli import probe as command_module
from densesiam_seg.cli.app import app
from densesiam_seg.datasets.scenes import CLASSES, write_scenes
from densesiam_seg.errors import InputError
from densesiam_seg.evaluation import probe as probe_module
from densesiam_seg.evaluation.evaluate import PROTOCOLS
from densesiam_seg.evaluation.probe import probe
from densesiam_seg.inference.segmenter import Segmenter

Cli = Callable[..., tuple[int, str, str]]

SUPERVISED = "linear probe, supervised: uses the labels of the train split"
LABEL_FREE = "k-means probe, label-free: labels only match and score"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four labelled scenes of 48 pixels to learn from and three to score, and their declaration."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 4, seed=4, side=48, split="train")
    write_scenes(folder, 3, seed=4, side=48, split="val", first=4)
    classes = "".join(f'{{ name = "{name}", values = [{k}] }},' for k, name in enumerate(CLASSES))
    splits = "".join(
        f'[splits.{each}]\nimages = ["images/{each}"]\nlabels = ["labels/{each}"]\n'
        for each in ("val", "train")
    )
    (folder / "scenes.toml").write_text(
        f'protocol = "picie"\nimage_suffixes = [".jpg"]\nlabel_suffix = ".png"\nclasses = [{classes}]\n{splits}'
    )
    return folder


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program has the command, and a probe learns in few steps."""
    monkeypatch.setattr(probe_module, "STEPS", 50)
    if all(each.name != "probe" for each in app.registered_commands):
        monkeypatch.setattr(app, "registered_commands", [*app.registered_commands])
        app.command("probe")(command_module.command)


@pytest.fixture
def run(cli: Cli, data: Path, model_folder: Path) -> Cli:
    def probe_scenes(*arguments: object) -> tuple[int, str, str]:
        where = ("--dataset", data / "scenes.toml", "--root", data)
        machine = ("--device", "cpu", "--precision", "fp32")
        return cli("probe", model_folder, *where, *machine, *arguments)

    return probe_scenes


def refused(found: tuple[int, str, str], code: int, name: str, words: str) -> None:
    assert found[:2] == (code, "")
    assert found[2].startswith(f"error[{name}]: ")
    assert len(found[2].splitlines()) == 1
    assert words in found[2]


class TestNumbers:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_json_is_the_python_result(
        self, run: Cli, data: Path, segmenter: Segmenter, protocol: str
    ) -> None:
        code, out, error = run("--json", "-q", "--protocol", protocol)
        assert (code, error) == (0, "")
        expected = probe(segmenter, data / "scenes.toml", data, protocol=protocol)
        value = json.loads(out)
        assert expected.linear is not None
        assert expected.kmeans is not None
        assert value["linear"]["counts"] == expected.linear.counts.tolist()
        assert value["kmeans"]["counts"] == expected.kmeans.counts.tolist()
        assert value["linear"]["protocol"] == PROTOCOLS[protocol].describe(32)
        assert value["linear"]["matching"]["kind"] == "identity"
        assert (value["linear"]["supervised"], value["linear"]["readout"]) == (True, SUPERVISED)
        assert (value["kmeans"]["supervised"], value["kmeans"]["readout"]) == (False, LABEL_FREE)

    def test_the_tables_then_both_numbers_and_what_each_used(self, run: Cli) -> None:
        code, out, error = run()
        assert code == 0
        assert error.startswith("processor time: ")
        assert len(error.splitlines()) == 1
        assert out.count(f"protocol {PROTOCOLS['picie'].describe(32)}; matching ") == 2
        assert f"clusters {len(CLASSES)} ({SUPERVISED}), in use" in out
        lines = out.splitlines()
        assert (lines[-4], lines[-2]) == (SUPERVISED, LABEL_FREE)
        assert all(line.startswith("    mean IoU ") for line in (lines[-3], lines[-1]))

    def test_one_kind(self, run: Cli) -> None:
        code, out, error = run("--kind", "kmeans", "-k", "9", "-q")
        assert (code, error) == (0, "")
        assert SUPERVISED not in out
        assert out.splitlines()[-2] == LABEL_FREE
        value = json.loads(run("--kind", "linear", "--json")[1])
        assert value["kmeans"] is None

    def test_the_result_also_in_a_file(self, run: Cli, tmp_path: Path) -> None:
        code, out, _ = run("--out", tmp_path / "r.json", "--json")
        assert code == 0
        assert json.loads((tmp_path / "r.json").read_text()) == json.loads(out)
        found = run("--out", tmp_path / "r.json")
        refused(found, 2, "usage", f"--out {tmp_path / 'r.json'}: exists already")
        assert run("--out", tmp_path / "r.json", "--overwrite")[0] == 0
        refused_late = run("--out", tmp_path / "r.json" / "deeper.json", "-q")
        assert refused_late[0] == 5
        assert refused_late[1].splitlines()[-2] == LABEL_FREE

    def test_what_is_asked_for(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def record(*arguments: Any, **options: Any) -> Any:
            calls.append((arguments, options))
            raise InputError("enough")

        monkeypatch.setattr(probe_module, "ready_probe", record)
        cli("probe", "run", "--dataset", "camvid", "--root", tmp_path)
        cli(
            "probe", "run", "--dataset", "camvid", "--root", tmp_path, "--split", "test", "--train-split", "val",
            "--kind", "kmeans", "--protocol", "stego", "--image-size", "64", "-k", "9", "--seed", "7",
            "--device", "cpu", "--precision", "bf16",
        )  # fmt: skip
        defaults = {
            "train_split": "train", "split": None, "protocol": None, "image_size": None, "kind": "both",
            "clusters": None, "seed": 0, "device": "auto", "precision": "auto",
        }  # fmt: skip
        given = {
            "train_split": "val", "split": "test", "protocol": "stego", "image_size": 64, "kind": "kmeans",
            "clusters": 9, "seed": 7, "device": "cpu", "precision": "bf16",
        }  # fmt: skip
        where = (Path("run"), "camvid", tmp_path)
        assert calls == [(where, defaults), (where, given)]

    def test_equal_for_a_seed(self, run: Cli) -> None:
        first, again, other = (run("-k", 9, "--seed", seed, "-q")[1] for seed in (3, 3, 4))
        assert first == again
        assert first != other


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "code", "name", "words"),
        [
            (["--kind", "tree"], 2, "usage", "--kind tree: give one of both, linear, kmeans"),
            (
                ["--kind", "linear", "-k", "4"],
                2,
                "usage",
                "--clusters belongs to the k-means probe",
            ),
            (["--clusters", "0"], 2, "usage", "--clusters 0: must be 1 to 4096"),
            (["--protocol", "voc"], 2, "usage", "--protocol voc: give one of picie, stego"),
            (["--image-size", "8"], 2, "usage", "--image-size 8: must be 32 to 4096"),
            (["--split", "test"], 2, "usage", "no split 'test'; give one of val, train"),
            (["--split", "train"], 2, "usage", "--train-split train and --split train share 4"),
            (["--train-split", "val"], 2, "usage", "--train-split val and --split val share 3"),
            (["--precision", "fp8"], 2, "usage", "--precision fp8"),
            (["--clusters", "999"], 3, "input", "points cannot make 999 clusters"),
        ],
    )
    def test_options(
        self, run: Cli, arguments: list[str], code: int, name: str, words: str
    ) -> None:
        refused(run(*arguments), code, name, words)

    def test_what_must_be_given(self, cli: Cli, tmp_path: Path) -> None:
        refused(cli("probe"), 2, "usage", "Missing argument 'run'")
        refused(cli("probe", "run", "--root", tmp_path), 2, "usage", "Missing option '--dataset'")
        refused(cli("probe", "run", "--dataset", "camvid"), 2, "usage", "Missing option '--root'")

    def test_data_without_labels(
        self, cli: Cli, data: Path, tmp_path: Path, model_folder: Path
    ) -> None:
        where = ("--dataset", data / "scenes.toml", "--root", tmp_path)
        (tmp_path / "images").symlink_to(data / "images")
        found = cli("probe", model_folder, *where)
        refused(found, 3, "input", f"probe needs labelled images: {tmp_path}: no folder labels/val")
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "val").symlink_to(data / "labels" / "val")
        (tmp_path / "labels" / "train").mkdir()
        found = cli("probe", model_folder, *where)
        refused(found, 3, "input", "probe needs labelled images: ")
        assert "4 no label in" in found[2]

    def test_models(self, cli: Cli, data: Path, tmp_path: Path) -> None:
        where = ("--dataset", data / "scenes.toml", "--root", data)
        refused(cli("probe", tmp_path, *where), 4, "model", "no model here")

    def test_a_diverged_model(
        self, run: Cli, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def features(*arguments: Any) -> torch.Tensor:
            return torch.full((len(arguments[1]), 8, 8, 8), torch.nan)

        monkeypatch.setattr(probe_module, "dense_features", features)
        refused(run(), 6, "numeric", "its features are not finite")
