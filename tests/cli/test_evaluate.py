"""`evaluate` and `probe`: scores of a labelled set on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from program import Cli, Patch, options, refused

from densesiam_seg.datasets.scenes import CLASSES
from densesiam_seg.errors import InputError
from densesiam_seg.evaluation import probe as probe_module
from densesiam_seg.evaluation.evaluate import evaluate
from densesiam_seg.evaluation.probe import Probe, ready_probe
from densesiam_seg.evaluation.protocol import PROTOCOLS
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter

MACHINE = ("--device", "cpu", "--precision", "fp32")
SUPERVISED = "linear probe, supervised: uses the labels of the train split"
LABEL_FREE = "k-means probe, label-free: labels only match and score"


@pytest.fixture
def run(cli: Cli, scenes: Path, model_folder: Path) -> Cli:
    where = (scenes / "scenes.toml", "--root", scenes, "--model", model_folder)
    return lambda *arguments: cli("evaluate", *where, *MACHINE, *arguments)


@pytest.fixture
def run_probe(cli: Cli, scenes: Path, model_folder: Path, monkeypatch: Patch) -> Cli:
    """A probe that learns in few steps."""
    monkeypatch.setattr(probe_module, "STEPS", 50)
    where = (model_folder, "--dataset", scenes / "scenes.toml", "--root", scenes)
    return lambda *arguments: cli("probe", *where, *MACHINE, *arguments)


class TestEvaluate:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_json_is_the_python_result(
        self, run: Cli, scenes: Path, segmenter: Segmenter, protocol: str
    ) -> None:
        code, out, error = run("--json", "--protocol", protocol)
        assert (code, error) == (0, "")
        expected = evaluate(scenes / "scenes.toml", scenes, segmenter, protocol=protocol)
        assert json.loads(out)["counts"] == expected.counts.tolist()
        assert json.loads(out)["protocol"] == PROTOCOLS[protocol].describe(32)

    def test_the_table_names_every_class_and_the_protocol(self, run: Cli) -> None:
        code, out, error = run("-q")
        assert (code, error) == (0, "")
        assert all(name in out for name in CLASSES)
        assert f"protocol {PROTOCOLS['picie'].describe(32)}; matching hungarian" in out
        assert out.splitlines()[-1].startswith("mean IoU ")

    @pytest.mark.parametrize(
        ("readout", "clusters", "name", "matching"),
        [
            (("kmeans", "-k", "9"), 9, "kmeans", "many-to-one"),
            (("merge", "-k", "4", "--over-clusters", "20"), 4, "merge of 20", "hungarian"),
        ],
    )
    def test_other_readouts(
        self, run: Cli, scenes: Path, readout: tuple[str], clusters: int, name: str, matching: str
    ) -> None:
        fit = ("--fit-images", scenes / "images" / "val")
        code, out, _ = run("--json", "--readout", *readout, *fit)
        value = json.loads(out)
        assert (code, value["clusters"], value["readout"]) == (0, clusters, name)
        assert value["matching"]["kind"] == matching

    def test_passes_and_edges_stand_beside_the_protocol(
        self, run: Cli, scenes: Path, segmenter: Segmenter
    ) -> None:
        given = ("--flip", "--scales", "0.75,1", "--refine", "pamr")
        code, out, _ = run("--json", *given)
        how = Refinement(True, (0.75, 1.0), "pamr")
        expected = evaluate(scenes / "scenes.toml", scenes, segmenter, refinement=how)
        value = json.loads(out)
        assert (code, value["counts"]) == (0, expected.counts.tolist())
        assert value["protocol"] == PROTOCOLS["picie"].describe(32) + how.describe()
        assert how.describe() in run(*given)[1]

    def test_a_choice_is_told(self, run: Cli, scenes: Path) -> None:
        fit = ("--over-clusters", "9", "--fit-images", scenes / "images" / "val")
        code, out, error = run("--readout", "auto", *fit, "--json")
        assert code == 0
        lines = error.splitlines()
        assert [line.split(":")[0] for line in lines[:-1]] == [
            f"candidate {name}, 5 clusters" for name in ("head", "kmeans", "merge of 9")
        ]
        chosen = lines[-1].removeprefix("chosen without labels: ")
        assert chosen.startswith(f"{json.loads(out)['readout']}, ")
        assert f"candidate {chosen}" in error

    def test_some_images_and_missing_ones(self, run: Cli, tmp_path: Path) -> None:
        (tmp_path / "some.txt").write_text("0001\n0009\n")
        given = ("--list", tmp_path / "some.txt", "--image-size", "40")
        refused(run(*given), 3, "input", "(--allow-missing)")
        code, out, error = run(*given, "--allow-missing", "--json")
        value = json.loads(out)
        assert (code, value["images"], value["missing"]) == (0, 1, ["0009"])
        assert sum(map(sum, value["counts"])) == 40**2
        assert error == "warning: 1 images were missing, first 0009\n"

    def test_a_list_of_pairs_as_windows_writes_it(self, run: Cli, tmp_path: Path) -> None:
        lines = [rf"images\val\{name}.jpg,labels\val\{name}.png" for name in ("0001", "0002")]
        (tmp_path / "pairs.csv").write_bytes("\r\n".join(["\ufeff" + lines[0], lines[1]]).encode())
        code, out, error = run("--list", tmp_path / "pairs.csv", "--json")
        value = json.loads(out)
        assert (code, error, value["images"], value["notes"]) == (0, "", 2, [])

    def test_labels_beside_images(
        self, cli: Cli, scenes: Path, tmp_path: Path, model_folder: Path
    ) -> None:
        """Warnings are told when quiet too, and stay in the result."""
        (tmp_path / "one").mkdir()
        for name, end in (("0001", ""), ("0002", ""), ("0001", "_1")):
            shutil.copy(scenes / f"images/val/{name}.jpg", tmp_path / f"one/{name}.jpg")
            shutil.copy(scenes / f"labels/val/{name}.png", tmp_path / f"one/{name}_mask{end}.png")
        text = (
            (scenes / "scenes.toml")
            .read_text()
            .replace('label_suffix = ".', 'label_suffix = "_mask.')
        )
        start, end = text.index("[splits"), '[splits.val]\nimages = "one"\nlabels = "one"\n'
        (tmp_path / "one.toml").write_text(text[:start] + end)
        where = ("--root", tmp_path, "-m", model_folder, "--device", "cpu")
        code, out, error = cli("evaluate", tmp_path / "one.toml", *where, "--json", "-q")
        (note,) = json.loads(out)["notes"]
        assert (code, json.loads(out)["images"]) == (0, 2)
        assert "0001_mask_1.png" in note
        assert error == f"warning: {note}\n"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--protocol", "voc"], "--protocol voc"),
            (["--image-size", "8"], "--image-size 8"),
            (["--split", "test"], "no split 'test'; give one of val, train"),
            (["--readout", "tree"], "give head, kmeans, merge or auto"),
            (["-k", "some"], "--clusters some"),
            (["-k", "auto"], "belong to --readout kmeans, merge and auto"),
            (["--scales", "1,1"], "different factors"),
            (["--refine", "crf"], "give one of auto, none, guided, pamr"),
            (["--precision", "fp8"], "precision = 'fp8'"),
        ],
    )
    def test_wrong_options(self, run: Cli, arguments: list[str], words: str) -> None:
        refused(run(*arguments), 2, "usage", words)

    def test_datasets_and_roots(self, cli: Cli, tmp_path: Path, model_folder: Path) -> None:
        where = ("--root", tmp_path, "-m", model_folder)
        found = cli("evaluate", "mine", *where)
        refused(found, 2, "usage", "no dataset is named 'mine'; give camvid, cityscapes")
        found = cli("evaluate", tmp_path / "mine.toml", *where)
        refused(found, 3, "input", "mine.toml: No such file")
        found = cli("evaluate", "camvid", *where)
        refused(found, 3, "input", f"{tmp_path}: no folder images/val or val")

    def test_labels_that_do_not_fit(
        self, cli: Cli, scenes: Path, tmp_path: Path, model_folder: Path
    ) -> None:
        text = (scenes / "scenes.toml").read_text().replace("values = [0]", "values = [77]")
        (tmp_path / "other.toml").write_text(text)
        where = ("--root", scenes, "-m", model_folder, "--device", "cpu")
        found = cli("evaluate", tmp_path / "other.toml", *where)
        refused(found, 3, "input", "0001.png: label values without a meaning")


class TestProbe:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_json_is_the_python_result(
        self, run_probe: Cli, scenes: Path, segmenter: Segmenter, protocol: str
    ) -> None:
        code, out, error = run_probe("--json", "-q", "--protocol", protocol)
        assert (code, error) == (0, "")
        *_, expected = ready_probe(segmenter, scenes / "scenes.toml", scenes, protocol=protocol)
        assert isinstance(expected, Probe)
        assert expected.linear is not None and expected.kmeans is not None
        found = json.loads(out)
        assert found["linear"]["counts"] == expected.linear.counts.tolist()
        assert found["kmeans"]["counts"] == expected.kmeans.counts.tolist()
        assert found["linear"]["protocol"] == PROTOCOLS[protocol].describe(32)
        used = [
            (found[kind]["supervised"], found[kind]["readout"]) for kind in ("linear", "kmeans")
        ]
        assert used == [(True, SUPERVISED), (False, LABEL_FREE)]

    def test_the_tables_then_both_numbers_and_what_each_used(self, run_probe: Cli) -> None:
        code, out, error = run_probe()
        assert code == 0
        assert error.startswith("processor time: ")
        assert len(error.splitlines()) == 1
        assert out.count(f"protocol {PROTOCOLS['picie'].describe(32)}; matching ") == 2
        lines = out.splitlines()
        assert (lines[-4], lines[-2]) == (SUPERVISED, LABEL_FREE)
        assert all(line.startswith("    mean IoU ") for line in (lines[-3], lines[-1]))

    def test_one_kind_equal_for_a_seed(self, run_probe: Cli) -> None:
        first, again, other = (
            run_probe("--kind", "kmeans", "-k", 9, "-q", "--seed", seed) for seed in (3, 3, 4)
        )
        assert (first[0], first[2]) == (0, "")
        assert first == again != other
        assert SUPERVISED not in first[1]
        assert first[1].splitlines()[-2] == LABEL_FREE

    def test_what_is_asked_for(self, cli: Cli, monkeypatch: Patch, tmp_path: Path) -> None:
        calls: list[Any] = []

        def record(*arguments: Any, **options: Any) -> Any:
            calls.append((*arguments, options))
            raise InputError("enough")

        monkeypatch.setattr(probe_module, "ready_probe", record)
        monkeypatch.setattr("densesiam_seg.cli.evaluate.require_model", lambda path: None)
        defaults: dict[str, Any] = {
            "split": None, "train_split": "train", "kind": "both", "protocol": None, "image_size": None,
            "clusters": None, "allow_outside": False, "seed": 0, "device": "auto", "precision": "auto",
        }  # fmt: skip
        given: dict[str, Any] = {
            "split": "test", "train_split": "val", "kind": "kmeans", "protocol": "stego", "image_size": 64,
            "clusters": 9, "allow_outside": True, "seed": 7, "device": "cpu", "precision": "bf16",
        }  # fmt: skip
        for settings in ({}, given):
            cli("probe", "run", "--dataset", "camvid", "--root", tmp_path, *options(settings))
        where = (Path("run"), "camvid", tmp_path)
        assert calls == [(*where, defaults), (*where, given)]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--kind", "tree"], "--kind tree: give one of both, linear, kmeans"),
            (["--kind", "linear", "-k", "4"], "--clusters belongs to the k-means probe"),
            (["--clusters", "0"], "--clusters 0"),
            (["--split", "train"], "--train-split train and --split train share 4"),
        ],
    )
    def test_wrong_options(self, run_probe: Cli, arguments: list[str], words: str) -> None:
        refused(run_probe(*arguments), 2, "usage", words)

    def test_data_without_labels(
        self, cli: Cli, scenes: Path, tmp_path: Path, model_folder: Path
    ) -> None:
        (tmp_path / "images").symlink_to(scenes / "images")
        found = cli("probe", model_folder, "--dataset", scenes / "scenes.toml", "--root", tmp_path)
        refused(found, 3, "input", f"probe needs labelled images: {tmp_path}: no folder labels/val")

    def test_a_diverged_model(self, run_probe: Cli, monkeypatch: Patch) -> None:
        def features(*arguments: Any) -> torch.Tensor:
            return torch.full((len(arguments[1]), 8, 8, 8), torch.nan)

        monkeypatch.setattr(probe_module, "dense_features", features)
        refused(run_probe(), 6, "numeric", "its features are not finite")


@pytest.mark.parametrize("command", ["run", "run_probe"])
def test_the_result_also_in_a_file(
    request: pytest.FixtureRequest, tmp_path: Path, command: str
) -> None:
    """It has been shown where the file cannot be written."""
    run = request.getfixturevalue(command)
    path = tmp_path / "r.json"
    code, out, _ = run("--out", path, "--json")
    assert (code, json.loads(path.read_text())) == (0, json.loads(out))
    refused(run("--out", path), 2, "usage", f"--out {path}: exists already")
    assert run("--out", path, "--overwrite")[0] == 0
    code, out, _ = run("--out", path / "deeper.json", "-q")
    assert (code, "mean IoU" in out.splitlines()[-1]) == (5, True)


def test_without_a_model(cli: Cli, scenes: Path, tmp_path: Path) -> None:
    data = scenes / "scenes.toml"
    found = cli("evaluate", data, "--root", scenes, "-m", tmp_path)
    refused(found, 4, "model", "no model here")
    found = cli("probe", tmp_path, "--dataset", data, "--root", scenes)
    refused(found, 4, "model", "no model here")
