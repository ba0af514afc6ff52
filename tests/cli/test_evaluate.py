"""`evaluate`: scores of a labelled set on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from densesiam_seg.datasets.scenes import CLASSES, write_scenes
from densesiam_seg.demo import scenes_toml
from densesiam_seg.errors import InputError
from densesiam_seg.evaluation.evaluate import PROTOCOLS, evaluate
from densesiam_seg.inference import readout
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.test_time import Refinement

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled scenes of 48 pixels, and their declaration."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 3, seed=4, side=48, split="val")
    (folder / "scenes.toml").write_text(scenes_toml())
    return folder


@pytest.fixture
def run(cli: Cli, data: Path, model_folder: Path) -> Cli:
    def evaluate(*arguments: object) -> tuple[int, str, str]:
        where = ("--root", data, "--model", model_folder)
        machine = ("--device", "cpu", "--precision", "fp32")
        return cli("evaluate", data / "scenes.toml", *where, *machine, *arguments)

    return evaluate


def refused(found: tuple[int, str, str], code: int, name: str, words: str) -> None:
    assert found[:2] == (code, "")
    assert found[2].startswith(f"error[{name}]: ")
    assert len(found[2].splitlines()) == 1
    assert words in found[2]


class TestScores:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_json_is_the_python_result(
        self, run: Cli, data: Path, segmenter: Segmenter, protocol: str
    ) -> None:
        code, out, error = run("--json", "--protocol", protocol)
        assert (code, error) == (0, "")
        expected = evaluate(data / "scenes.toml", data, segmenter, protocol=protocol)
        assert json.loads(out)["counts"] == expected.counts.tolist()
        assert json.loads(out)["protocol"] == PROTOCOLS[protocol].describe(32)

    def test_the_table_names_every_class_and_the_protocol(self, run: Cli) -> None:
        code, out, error = run("-q")
        assert (code, error) == (0, "")
        assert all(name in out for name in CLASSES)
        assert f"protocol {PROTOCOLS['picie'].describe(32)}; matching hungarian" in out
        assert out.splitlines()[-1].startswith("mean IoU ")

    def test_the_result_also_in_a_file(self, run: Cli, tmp_path: Path) -> None:
        assert run("--out", tmp_path / "r.json")[0] == 0
        value = json.loads((tmp_path / "r.json").read_text())
        assert len(value["counts"]) == len(CLASSES)
        found = run("--out", tmp_path / "r.json")
        refused(found, 2, "usage", f"--out {tmp_path / 'r.json'}: exists already")
        assert run("--out", tmp_path / "r.json", "--overwrite")[0] == 0

    def test_a_kmeans_readout(self, run: Cli, data: Path) -> None:
        options = ("--readout", "kmeans", "-k", "9", "--fit-images", data / "images")
        code, out, _ = run("--json", *options)
        value = json.loads(out)
        assert (code, value["clusters"], value["readout"]) == (0, 9, "kmeans")
        assert value["matching"]["kind"] == "many-to-one"

    def test_a_merge(self, run: Cli, data: Path) -> None:
        options = ("--readout", "merge", "-k", "4", "--over-clusters", "20")
        code, out, _ = run("--json", *options, "--fit-images", data / "images")
        value = json.loads(out)
        assert (code, value["clusters"], value["readout"]) == (0, 4, "merge of 20")
        assert value["matching"]["kind"] == "hungarian"

    def test_passes_and_edges_stand_beside_the_protocol(
        self, run: Cli, data: Path, segmenter: Segmenter
    ) -> None:
        code, out, _ = run("--json", "--flip", "--scales", "0.75,1", "--refine", "pamr")
        how = Refinement(True, (0.75, 1.0), "pamr")
        expected = evaluate(data / "scenes.toml", data, segmenter, refinement=how)
        value = json.loads(out)
        assert code == 0
        assert value["counts"] == expected.counts.tolist()
        assert value["protocol"] == PROTOCOLS["picie"].describe(32) + how.describe()
        assert how.describe() in run("--flip", "--scales", "0.75,1", "--refine", "pamr")[1]

    def test_what_the_read_out_is_asked_for(
        self, cli: Cli, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def record(*arguments: Any, **options: Any) -> Segmenter:
            options.pop("tell")
            calls.append((arguments, options))
            raise InputError("enough")

        monkeypatch.setattr(readout, "load_with_readout", record)
        where = (data / "scenes.toml", "--root", data)
        cli("evaluate", *where)
        cli(
            "evaluate", *where, "-m", "m", "--readout", "merge", "-k", "9", "--fit-images", "a",
            "--over-clusters", "50", "--seed", "7", "--device", "cpu", "--precision", "bf16",
        )  # fmt: skip
        assert calls == [
            (
                (None, "head", None, None),
                {"over_clusters": None, "seed": 0, "device": "auto", "precision": "auto"},
            ),
            (
                (Path("m"), "merge", 9, ["a"]),
                {"over_clusters": 50, "seed": 7, "device": "cpu", "precision": "bf16"},
            ),
        ]

    def test_a_choice_is_told(self, run: Cli, data: Path) -> None:
        fit = ("--readout", "auto", "--over-clusters", "20", "--fit-images", data / "images")
        code, out, error = run(*fit, "--json")
        assert code == 0
        lines = error.splitlines()
        assert [line.split(":")[0] for line in lines[:-1]] == [
            f"candidate {name}, 5 clusters" for name in ("head", "kmeans", "merge of 20")
        ]
        assert lines[-1].removeprefix("chosen without labels: ") in error.replace("candidate ", "")
        value = json.loads(out)
        assert lines[-1].startswith(f"chosen without labels: {value['readout']}, ")

    def test_a_chosen_number_of_clusters(self, run: Cli, data: Path) -> None:
        fit = ("--readout", "merge", "--clusters", "auto", "--fit-images", data / "images")
        code, out, error = run(*fit, "--over-clusters", "9", "--json")
        assert (code, error.count("candidate merge of 9")) == (0, 4)
        assert f"of 9, {json.loads(out)['clusters']} clusters" in error.splitlines()[-1]

    def test_size_and_list(self, run: Cli, tmp_path: Path) -> None:
        (tmp_path / "some.txt").write_text("0002\n")
        code, out, _ = run("--json", "--image-size", "40", "--list", tmp_path / "some.txt")
        value = json.loads(out)
        assert (code, value["images"]) == (0, 1)
        assert sum(map(sum, value["counts"])) == 40**2

    def test_missing_images(self, run: Cli, tmp_path: Path) -> None:
        (tmp_path / "more.txt").write_text("0001\n0009\n")
        found = run("--list", tmp_path / "more.txt")
        refused(found, 3, "input", "(--allow-missing)")
        code, out, error = run("--list", tmp_path / "more.txt", "--allow-missing", "--json")
        assert (code, json.loads(out)["missing"]) == (0, ["0009"])
        assert error == "warning: 1 images were missing, first 0009\n"


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "code", "name", "words"),
        [
            (["--protocol", "voc"], 2, "usage", "--protocol voc: give one of picie, stego"),
            (["--image-size", "8"], 2, "usage", "--image-size 8: must be 32 to 4096"),
            (["--split", "test"], 2, "usage", "no split 'test'; give one of val, train"),
            (["--split", "train"], 3, "input", "no folder images/train"),
            (["--readout", "tree"], 2, "usage", "give head, kmeans, merge or auto"),
            (["-k", "some"], 2, "usage", "--clusters some: give a whole number or auto"),
            (["-k", "auto"], 2, "usage", "belong to --readout kmeans, merge and auto"),
            (["--scales", "1,1"], 2, "usage", "give 1 to 8 different factors"),
            (["--refine", "crf"], 2, "usage", "give one of auto, none, guided, pamr"),
            (["--precision", "fp8"], 2, "usage", "--precision fp8"),
            (["--list", "/nowhere.txt"], 3, "input", "no such list file"),
        ],
    )
    def test_options(
        self, run: Cli, arguments: list[str], code: int, name: str, words: str
    ) -> None:
        refused(run(*arguments), code, name, words)

    def test_datasets_and_roots(self, cli: Cli, tmp_path: Path, model_folder: Path) -> None:
        found = cli("evaluate", "mine", "--root", tmp_path, "-m", model_folder)
        refused(found, 2, "usage", "no dataset is named 'mine'; give camvid, cityscapes")
        found = cli("evaluate", tmp_path / "mine.toml", "--root", tmp_path, "-m", model_folder)
        refused(found, 3, "input", "mine.toml: No such file")
        found = cli("evaluate", "camvid", "--root", tmp_path, "-m", model_folder)
        refused(found, 3, "input", f"{tmp_path}: no folder images/val or val")

    def test_models(self, cli: Cli, data: Path, tmp_path: Path) -> None:
        where = (data / "scenes.toml", "--root", data)
        found = cli("evaluate", *where, "-m", tmp_path)
        refused(found, 4, "model", "no model here")
        (tmp_path / "config.json").write_text("{}")
        refused(cli("evaluate", *where, "-m", tmp_path), 4, "model", "not a model of this program")

    def test_labels_that_do_not_fit(
        self, cli: Cli, data: Path, tmp_path: Path, model_folder: Path
    ) -> None:
        text = (data / "scenes.toml").read_text().replace("values = [0]", "values = [77]")
        (tmp_path / "other.toml").write_text(text)
        where = ("--root", data, "-m", model_folder, "--device", "cpu")
        found = cli("evaluate", tmp_path / "other.toml", *where)
        refused(found, 3, "input", "0001.png: label values without a meaning")
