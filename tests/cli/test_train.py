"""`train`: every setting has its option, a run ends with a model, and bad input with one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from densesiam_seg.config import TrainConfig
from densesiam_seg.errors import InputError
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.training import train as training

Cli = Callable[..., tuple[int, str, str]]

VALUES: dict[str, Any] = {
    "seed": 7,
    "backbone": "resnet34",
    "weights": "none",
    "freeze": True,
    "channels": 64,
    "image_size": 160,
    "epochs": 3,
    "batch_size": 8,
    "optimizer": "adam",
    "learning_rate": 0.01,
    "rate_scaling": "none",
    "schedule": "cosine",
    "momentum": 0.8,
    "weight_decay": 0.001,
    "visualize_every": 2,
    "device": "cpu",
    "precision": "fp32",
    "threads": 2,
    "workers": 1,
    "cache": "disk",
    "cache_dir": "elsewhere",
    "max_pixels": 1000,
    "method": "picie",
    "clusters": 11,
    "over_clusters": 99,
    "replay": "run",
    "prior": "mixture",
    "prior_weight": 2.0,
    "similarity": "cosine",
    "image_weight": 0.7,
    "pixel_weight": 2.0,
    "over_cluster_weight": 0.5,
    "segmentation_weight": 0.25,
    "balance": "frequency",
    "region_weight": 0.3,
    "region_start": 0.5,
    "region_stop_gradient": False,
}
"""Another value than the default for every setting but those that are machine-dependent anyway."""


def options(settings: dict[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        else:
            yield from (f"--{option}", str(value))


@pytest.fixture
def call(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What the command hands to `training_events`."""
    calls: list[dict[str, Any]] = []

    def record(images: list[str], **given: Any) -> Iterator[object]:
        calls.append({"images": images, **given})
        raise InputError("enough")

    monkeypatch.setattr(training, "training_events", record)

    def run(*arguments: object) -> dict[str, Any]:
        assert cli("train", *arguments)[0] == 3
        return calls[-1]

    return run


@pytest.fixture
def tiny(tiny_settings: dict[str, Any]) -> list[str]:
    return list(options(tiny_settings))


class TestSettings:
    def test_every_setting_has_an_option_of_its_name(
        self, call: Callable[..., dict[str, Any]]
    ) -> None:
        assert list(VALUES) == [field.name for field in fields(TrainConfig)]
        assert all(getattr(TrainConfig(), k) != v for k, v in VALUES.items() if k != "device")
        given = call("images", *options(VALUES))
        assert {name: given[name] for name in VALUES} == VALUES

    def test_what_is_not_given_is_left_to_the_preset(
        self, call: Callable[..., dict[str, Any]]
    ) -> None:
        assert call("images") == {
            "images": ["images"],
            "out": None,
            "preset": None,
            "max_time": None,
            "max_bad": 1.0,
            "init_from": None,
            "resume": False,
            "overwrite": False,
        }

    def test_the_others(self, call: Callable[..., dict[str, Any]]) -> None:
        given = call(
            "a", "b", "--out", "o", "--preset", "fast", "--max-time", "2m", "--max-bad", "0.5",
            "--init-from", "m", "--overwrite", "-k", "5", "-b", "auto", "-j", "auto", "--region-stop-gradient",
        )  # fmt: skip
        assert given == {
            "images": ["a", "b"],
            "out": Path("o"),
            "preset": "fast",
            "max_time": 120.0,
            "max_bad": 0.5,
            "init_from": Path("m"),
            "resume": False,
            "overwrite": True,
            "clusters": 5,
            "region_stop_gradient": True,
        }

    def test_resume_needs_no_images(self, call: Callable[..., dict[str, Any]]) -> None:
        assert call("--resume", "-o", "o")["images"] == []

    def test_options_win_over_the_file(
        self, call: Callable[..., dict[str, Any]], tmp_path: Path
    ) -> None:
        (tmp_path / "c.toml").write_text("clusters = 9\nmomentum = 0.5\n")
        given = call("images", "--config", tmp_path / "c.toml", "--clusters", "4")
        assert (given["clusters"], given["momentum"]) == (4, 0.5)

    def test_a_file_of_pre_training_is_refused(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text("categories = 9\n")
        code, out, error = cli("train", "images", "--config", tmp_path / "c.toml")
        assert (code, out) == (3, "")
        assert "unknown setting 'categories'" in error

    def test_a_runs_own_file_can_be_given_back(
        self, call: Callable[..., dict[str, Any]], tmp_path: Path
    ) -> None:
        config = TrainConfig(**VALUES)
        (tmp_path / "config.toml").write_text(config.to_toml())
        given = call("images", "--config", tmp_path / "config.toml")
        assert {name: given[name] for name in VALUES} == asdict(config)


@pytest.mark.usefixtures("slim")
class TestRuns:
    def test_a_run_ends_with_a_model(
        self, cli: Cli, image_folder: Path, tmp_path: Path, tiny: list[str]
    ) -> None:
        out = tmp_path / "run"
        code, text, error = cli("train", image_folder, "--out", out, *tiny)
        assert (code, text) == (0, "")
        assert f"model: {out / 'model'}" in error
        assert error.splitlines()[-1].startswith("next:  densesiam-seg predict IMAGE --model")
        assert Segmenter.load(out, device="cpu").card.clusters == 4

    @pytest.mark.parametrize("method", ["simsiam", "picie"])
    def test_another_method(
        self, cli: Cli, image_folder: Path, tmp_path: Path, tiny: list[str], method: str
    ) -> None:
        out = tmp_path / "run"
        code, text, error = cli("train", image_folder, "-o", out, *tiny, "--method", method)
        assert (code, text) == (0, "")
        assert f"method {method}" in error and "warning" not in error
        assert Segmenter.load(out, device="cpu").card.readout == "kmeans"

    def test_pictures(self, cli: Cli, image_folder: Path, tmp_path: Path, tiny: list[str]) -> None:
        out = tmp_path / "run"
        code, _, error = cli("train", image_folder, "-o", out, *tiny, "--visualize-every", "3")
        assert code == 0
        assert f"picture: {out / 'report' / 'epoch-0003.png'}" in error.splitlines()
        assert (out / "report" / "epoch-0003.png").is_file()

    def test_json_and_quiet(
        self, cli: Cli, image_folder: Path, tmp_path: Path, tiny: list[str]
    ) -> None:
        out = tmp_path / "run"
        code, text, error = cli("train", image_folder, "-o", out, *tiny, "--json", "--quiet")
        assert (code, error) == (0, "")
        value = json.loads(text)
        assert (value["run"], value["complete"]) == (str(out), True)
        assert value["last_epoch"]["epoch"] == 2

    def test_without_a_place_under_runs_and_then_the_latest(
        self,
        cli: Cli,
        image_folder: Path,
        tmp_path: Path,
        tiny: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert cli("train", image_folder, *tiny, "-q")[0] == 0
        assert (tmp_path / "runs" / "train" / "latest" / "model").is_dir()
        code, _, error = cli("predict", image_folder / "01.png", "--out", "mask.png")
        assert (code, error) == (0, "1 mask written: mask.png\n")

    def test_what_was_skipped_is_said(
        self, cli: Cli, image_folder: Path, tmp_path: Path, tiny: list[str]
    ) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"junk")
        inputs = (image_folder, tmp_path / "bad.jpg")
        code, _, error = cli("train", *inputs, "--out", tmp_path / "run", *tiny)
        assert code == 0
        assert "warning: skipped (not-an-image): " in error
        assert "1 of 13 files were skipped" in error

    def test_the_time_limit(
        self, cli: Cli, image_folder: Path, tmp_path: Path, tiny: list[str]
    ) -> None:
        out = tmp_path / "run"
        code, text, error = cli(
            "train", image_folder, "-o", out, *tiny, "--max-time", "0.001", "--json"
        )
        assert (code, json.loads(text)["complete"]) == (0, False)
        assert f"go on with densesiam-seg train --resume --out {out}" in error
        code, text, _ = cli("train", "--resume", "-o", out, "--json")
        assert (code, json.loads(text)["complete"]) == (0, True)


class TestRefusals:
    """Nothing has been started, so stderr is the one line."""

    def refused(self, found: tuple[int, str, str], code: int, name: str, words: str) -> None:
        assert found[:2] == (code, "")
        assert found[2].startswith(f"error[{name}]: ")
        assert len(found[2].splitlines()) == 1
        assert words in found[2]

    def test_no_images(self, cli: Cli) -> None:
        self.refused(cli("train"), 2, "usage", "name a folder of images")

    def test_no_such_folder(self, cli: Cli, tmp_path: Path) -> None:
        self.refused(cli("train", tmp_path / "none"), 3, "input", "none: no such file or folder")

    def test_an_empty_folder(self, cli: Cli, tmp_path: Path) -> None:
        found = cli("train", tmp_path, "-o", tmp_path / "run")
        self.refused(found, 3, "input", "no image found")
        assert not (tmp_path / "run").exists()

    def test_a_list_of_missing_files(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
        found = cli("train", tmp_path / "list.txt", "-o", tmp_path / "run")
        self.refused(found, 3, "input", "2 of the 2 files it names do not exist")

    def test_a_place_that_is_taken(self, cli: Cli, image_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        found = cli("train", image_folder, "-o", tmp_path)
        self.refused(found, 2, "usage", f"--out {tmp_path}: is not empty")
        found = cli("train", image_folder, "-o", tmp_path, "--overwrite")
        self.refused(found, 2, "usage", "which no run wrote")
        assert (tmp_path / "mine.txt").read_text() == "mine"

    def test_a_place_that_is_a_file(self, cli: Cli, image_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        found = cli("train", image_folder, "-o", tmp_path / "file")
        self.refused(found, 5, "output", "is not a folder")

    def test_nothing_to_resume(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        self.refused(cli("train", "--resume"), 2, "usage", "no run to resume")
        self.refused(cli("train", "--resume", "-o", "x"), 2, "usage", "holds no run to resume")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--batch-size", "many"], "--batch-size many: give a whole number or auto"),
            (["--workers", "all"], "--workers all: give a whole number or auto"),
            (["--max-time", "soon"], "--max-time soon: give seconds"),
            (["--clusters", "1"], "clusters = 1: must be 2 to 4096"),
            (["--image-size", "33"], "image_size = 33: must be a multiple of 4"),
            (["--balance", "fair"], "balance = 'fair': must be one of"),
            (["--method", "stego"], "method = 'stego': must be one of densesiam, pixsim, simsiam"),
            (["--optimizer", "lars"], "optimizer = 'lars': must be one of sgd, adam"),
            (["--visualize-every", "-1"], "visualize_every = -1: must be 0 to"),
            (["--method", "simsiam", "--image-weight", "0"], "where no other loss is on"),
            (["--resume", "--overwrite"], "--resume goes on with the same run"),
        ],
    )
    def test_settings(
        self, cli: Cli, image_folder: Path, tmp_path: Path, arguments: list[str], words: str
    ) -> None:
        found = cli("train", image_folder, "-o", tmp_path / "run", *arguments)
        self.refused(found, 2, "usage", words)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("content", "words"),
        [("clusterz = 3", "unknown setting 'clusterz'"), ("= 3", "not valid TOML")],
    )
    def test_a_bad_config(
        self, cli: Cli, image_folder: Path, tmp_path: Path, content: str, words: str
    ) -> None:
        (tmp_path / "c.toml").write_text(content)
        found = cli("train", image_folder, "--config", tmp_path / "c.toml")
        self.refused(found, 3, "input", words)
        found = cli("train", image_folder, "--config", tmp_path / "none.toml")
        self.refused(found, 3, "input", "none.toml: cannot be read")

    def test_a_folder_of_junk(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.jpg").write_bytes(b"junk")
        code, out, error = cli("train", tmp_path / "images", "-o", tmp_path / "run", "-q")
        assert (code, out) == (3, "")
        assert error.splitlines()[-1].startswith("error[input]: ")
        assert "1 of 1 files cannot be used" in error

    @pytest.mark.usefixtures("slim")
    def test_fewer_images_than_a_batch(
        self, cli: Cli, image_folder: Path, tmp_path: Path, tiny: list[str]
    ) -> None:
        found = cli("train", image_folder, "-o", tmp_path / "run", *tiny, "-b", "13", "-q")
        self.refused(found, 3, "input", "12 usable images cannot fill a batch of 13")
