"""`pretrain`: every setting has its option, a run ends with a backbone to start from, and bad input with one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from densesiam_seg.config import PretrainConfig
from densesiam_seg.errors import InputError
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.training import pretrain as pretraining

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
    "schedule": "constant",
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
    "features": "fpn",
    "categories": 11,
    "min_scale": 0.3,
    "max_scale": 0.9,
    "correspondence": "location",
    "sampling": "biased",
    "grid": 5,
    "oversample": 10,
    "importance": 1.0,
    "distance_threshold": 0.5,
    "similarity": "cosine",
    "image_weight": 0.7,
    "pixel_weight": 2.0,
    "region_weight": 0.3,
    "region_stop_gradient": False,
}
"""Another value than the default for every setting but the device, and the correspondence, which sampling ties down."""


def options(settings: dict[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        else:
            yield from (f"--{option}", str(value))


@pytest.fixture
def call(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What the command hands to `pretraining_events`."""
    calls: list[dict[str, Any]] = []

    def record(images: list[str], **given: Any) -> Iterator[object]:
        calls.append({"images": images, **given})
        raise InputError("enough")

    monkeypatch.setattr(pretraining, "pretraining_events", record)

    def run(*arguments: object) -> dict[str, Any]:
        assert cli("pretrain", *arguments)[0] == 3
        return calls[-1]

    return run


@pytest.fixture
def tiny(tiny_settings: dict[str, Any]) -> list[str]:
    known = vars(PretrainConfig())
    common = {name: value for name, value in tiny_settings.items() if name in known}
    return list(options({**common, "epochs": 1, "categories": 5, "grid": 2}))


class TestSettings:
    def test_every_setting_has_an_option_of_its_name(
        self, call: Callable[..., dict[str, Any]]
    ) -> None:
        assert list(VALUES) == [field.name for field in fields(PretrainConfig)]
        same = {name for name, value in VALUES.items() if getattr(PretrainConfig(), name) == value}
        assert same == {"correspondence"}
        given = call("images", *options(VALUES))
        assert {name: given[name] for name in VALUES} == VALUES

    @pytest.mark.parametrize(
        "name", ["feature-similarity", "pixel-distance", "candidate-regions", "none"]
    )
    def test_correspondences(self, call: Callable[..., dict[str, Any]], name: str) -> None:
        assert call("images", "--correspondence", name)["correspondence"] == name

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
            "a", "b", "--out", "o", "--preset", "paper", "--max-time", "2m", "--max-bad", "0.5",
            "--init-from", "m", "--overwrite", "-b", "auto", "-j", "auto", "--region-stop-gradient",
        )  # fmt: skip
        assert given == {
            "images": ["a", "b"],
            "out": Path("o"),
            "preset": "paper",
            "max_time": 120.0,
            "max_bad": 0.5,
            "init_from": Path("m"),
            "resume": False,
            "overwrite": True,
            "region_stop_gradient": True,
        }

    def test_resume_needs_no_images(self, call: Callable[..., dict[str, Any]]) -> None:
        assert call("--resume", "-o", "o")["images"] == []

    def test_options_win_over_the_file(
        self, call: Callable[..., dict[str, Any]], tmp_path: Path
    ) -> None:
        (tmp_path / "c.toml").write_text("categories = 9\nmomentum = 0.5\n")
        given = call("images", "--config", tmp_path / "c.toml", "--categories", "4")
        assert (given["categories"], given["momentum"]) == (4, 0.5)

    def test_a_runs_own_file_can_be_given_back(
        self, call: Callable[..., dict[str, Any]], tmp_path: Path
    ) -> None:
        config = PretrainConfig(**VALUES)
        (tmp_path / "config.toml").write_text(config.to_toml())
        given = call("images", "--config", tmp_path / "config.toml")
        assert {name: given[name] for name in VALUES} == asdict(config)


@pytest.mark.usefixtures("slim")
class TestRuns:
    def test_a_run_ends_with_what_to_do_next(
        self,
        cli: Cli,
        image_folder: Path,
        tmp_path: Path,
        tiny: list[str],
        tiny_settings: dict[str, Any],
    ) -> None:
        """And doing it works."""
        out = tmp_path / "run"
        code, text, error = cli("pretrain", image_folder, "--out", out, *tiny)
        assert (code, text) == (0, "")
        assert error.splitlines()[-2:] == [
            f"model: {out / 'model'}",
            f"next:  densesiam-seg train IMAGES --weights {out}",
        ]
        assert Segmenter.load(out, device="cpu").card.clusters == 5
        given = list(options({**tiny_settings, "weights": out, "epochs": 1}))
        code, _, error = cli("train", image_folder, "-o", tmp_path / "next", *given)
        assert code == 0
        assert f"weights: backbone and decoder of {out} (resnet18)" in error.splitlines()

    def test_json_and_quiet(
        self, cli: Cli, image_folder: Path, tmp_path: Path, tiny: list[str]
    ) -> None:
        out = tmp_path / "run"
        code, text, error = cli("pretrain", image_folder, "-o", out, *tiny, "--json", "--quiet")
        assert (code, error) == (0, "")
        value = json.loads(text)
        assert (value["run"], value["complete"]) == (str(out), True)
        assert len(value["last_epoch"]["shares"]) == 5
        assert value["last_epoch"]["spread"] > 0.5

    def test_without_a_place_under_runs_and_then_the_latest(
        self,
        cli: Cli,
        image_folder: Path,
        tmp_path: Path,
        tiny: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert cli("pretrain", image_folder, *tiny, "-q")[0] == 0
        assert (tmp_path / "runs" / "pretrain" / "latest" / "model").is_dir()
        code, _, error = cli("predict", image_folder / "01.png", "--out", "mask.png")
        assert (code, error) == (0, "1 mask written: mask.png\n")

    def test_the_time_limit(
        self, cli: Cli, image_folder: Path, tmp_path: Path, tiny: list[str]
    ) -> None:
        out = tmp_path / "run"
        code, text, error = cli(
            "pretrain", image_folder, "-o", out, *tiny, "--max-time", "0.001", "--json"
        )
        assert (code, json.loads(text)["complete"]) == (0, False)
        assert f"go on with densesiam-seg pretrain --resume --out {out}" in error
        code, text, _ = cli("pretrain", "--resume", "-o", out, "--json")
        assert (code, json.loads(text)["complete"]) == (0, True)

    def test_views_that_never_meet(
        self, cli: Cli, image_folder: Path, tmp_path: Path, tiny: list[str]
    ) -> None:
        scales = ("--min-scale", "0.0001", "--max-scale", "0.0001")
        code, out, error = cli("pretrain", image_folder, "-o", tmp_path, *tiny, *scales, "-q")
        assert (code, out) == (3, "")
        assert error.startswith("error[input]: epoch 1: no two views of any image overlap")
        assert len(error.splitlines()) == 1


class TestRefusals:
    """Nothing has been started, so stderr is the one line."""

    def refused(self, found: tuple[int, str, str], code: int, name: str, words: str) -> None:
        assert found[:2] == (code, "")
        assert found[2].startswith(f"error[{name}]: ")
        assert len(found[2].splitlines()) == 1
        assert words in found[2]

    def test_no_images(self, cli: Cli) -> None:
        words = "densesiam-seg pretrain images/"
        self.refused(cli("pretrain"), 2, "usage", words)

    def test_nothing_to_resume(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        self.refused(cli("pretrain", "--resume"), 2, "usage", "runs/pretrain: no run to resume")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--batch-size", "many"], "--batch-size many: give a whole number or auto"),
            (["--max-time", "soon"], "--max-time soon: give seconds"),
            (["--categories", "1"], "categories = 1: must be 2 to 4096"),
            (["--grid", "65"], "grid = 65: must be 1 to 64"),
            (["--correspondence", "flow"], "correspondence = 'flow': must be one of location"),
            (
                ["--correspondence", "pixel-distance", "--sampling", "uniform"],
                "sampling = 'uniform': must be regular unless the correspondence is location",
            ),
            (["--min-scale", "0.5", "--max-scale", "0.4"], "min_scale = 0.5: must be"),
            (["--clusters", "5"], "No such option: --clusters"),
            (["--resume", "--overwrite"], "--resume goes on with the same run"),
        ],
    )
    def test_settings(
        self, cli: Cli, image_folder: Path, tmp_path: Path, arguments: list[str], words: str
    ) -> None:
        found = cli("pretrain", image_folder, "-o", tmp_path / "run", *arguments)
        self.refused(found, 2, "usage", words)
        assert not (tmp_path / "run").exists()

    def test_a_file_of_train(self, cli: Cli, image_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text("clusters = 3\n")
        found = cli("pretrain", image_folder, "--config", tmp_path / "c.toml")
        self.refused(found, 3, "input", "unknown setting 'clusters'")

    @pytest.mark.usefixtures("slim")
    def test_fewer_images_than_a_batch(
        self, cli: Cli, image_folder: Path, tmp_path: Path, tiny: list[str]
    ) -> None:
        found = cli("pretrain", image_folder, "-o", tmp_path / "run", *tiny, "-b", "13", "-q")
        self.refused(found, 3, "input", "12 usable images cannot fill a batch of 13")
