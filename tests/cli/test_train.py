"""`train` and `pretrain`: settings reach the run, a run ends with a model, and bad input with one line."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launcher import launched
from pages import read_page
from program import RUNS, Cli, Patch, Result, options, other_values, refused
from tiny_runs import course

from densesiam_seg.config import PretrainConfig
from densesiam_seg.errors import InputError, OutputError
from densesiam_seg.io.records import read_records
from densesiam_seg.io.run_directory import read_status

Call = Callable[..., dict[str, Any]]
BOTH = pytest.mark.parametrize("command", RUNS)


@pytest.fixture
def call(cli: Cli, monkeypatch: Patch) -> Call:
    """What a command hands to `training_events` or `pretraining_events`."""
    calls: list[dict[str, Any]] = []

    def record(**given: Any) -> Iterator[object]:
        calls.append(given)
        raise InputError("enough")

    monkeypatch.setattr("densesiam_seg.training.train.training_events", record)
    monkeypatch.setattr("densesiam_seg.training.train.pretraining_events", record)

    def run(*arguments: object) -> dict[str, Any]:
        refused(cli(*arguments), 3, "input", "enough")
        return calls[-1]

    return run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def run(cli: Cli, image_folder: Path, tiny_settings: dict[str, Any], slim: None) -> Cli:
    """A command with options for a run of a second."""
    known = vars(PretrainConfig())
    common = {name: value for name, value in tiny_settings.items() if name in known}
    by_command = {
        "train": tiny_settings | {"prior": "none", "report": False},
        "pretrain": {**common, "categories": 5, "grid": 2},
    }

    def start(command: str, *more: object) -> Result:
        given = {**by_command[command], "epochs": 1}
        if "--report" in more:
            del given["report"]
        settings = options(given)
        return cli(command, image_folder, *settings, *(word for word in more if word != "--report"))

    return start


@BOTH
class TestSettings:
    def test_every_setting_arrives(self, call: Call, command: str) -> None:
        values = other_values(RUNS[command])
        assert call(command, "images", *options(values)).items() >= values.items()

    def test_what_is_not_given_is_left_to_the_preset(self, call: Call, command: str) -> None:
        assert call(command, "images") == {
            "images": ["images"], "out": None, "preset": None, "max_time": None, "max_bad": 1.0, "init_from": None,
            "resume": False, "overwrite": False, "follow_links": False, "accept_data_change": False,
            "checkpoint_every": None, "checkpoint_steps": None,
        }  # fmt: skip

    def test_the_others(self, call: Call, command: str) -> None:
        given = call(
            command, "a", "b", "--out", "o", "--preset", "fast", "--max-time", "2m", "--max-bad", "0.5",
            "--init-from", "m", "--overwrite", "--follow-links", "-b", "auto", "--region-stop-gradient",
            "--accept-data-change", "--checkpoint-every", "500",
        )  # fmt: skip
        assert given == {
            "images": ["a", "b"], "out": Path("o"), "preset": "fast", "max_time": 120.0, "max_bad": 0.5,
            "init_from": Path("m"), "resume": False, "overwrite": True, "follow_links": True,
            "region_stop_gradient": True, "accept_data_change": True, "checkpoint_every": None, "checkpoint_steps": 500,
        }  # fmt: skip

    def test_checkpoints_come_by_steps_or_by_time(self, call: Call, command: str) -> None:
        given = call(command, "images", "--checkpoint-every", "5m")
        assert (given["checkpoint_every"], given["checkpoint_steps"]) == (300.0, None)

    def test_resume_needs_no_images(self, call: Call, cli: Cli, command: str) -> None:
        assert call(command, "--resume", "-o", "o")["images"] == []
        refused(cli(command), 2, "usage", f"densesiam-seg {command} images/")

    def test_options_win_over_the_file(self, call: Call, tmp_path: Path, command: str) -> None:
        """The file is one that a run wrote."""
        written = RUNS[command](seed=9, channels=64)
        (tmp_path / "c.toml").write_text(written.to_toml())
        given = call(command, "images", "--config", tmp_path / "c.toml", "--channels", "32")
        assert given.items() >= {**vars(written), "channels": 32}.items()


@pytest.mark.parametrize(
    ("command", "content", "words"),
    [
        ("train", "= 3", "not valid TOML"),
        ("train", "categories = 9", "unknown setting 'categories'"),
        ("pretrain", "clusters = 9", "unknown setting 'clusters'"),
    ],
)
def test_a_bad_file(cli: Cli, tmp_path: Path, command: str, content: str, words: str) -> None:
    (tmp_path / "c.toml").write_text(content)
    refused(cli(command, "images", "--config", tmp_path / "c.toml"), 3, "input", words)


class TestRuns:
    def test_each_command_ends_with_what_to_do_next(
        self, cli: Cli, run: Cli, image_folder: Path, tmp_path: Path
    ) -> None:
        """And doing it works, from dense features to a mask."""
        first, second = tmp_path / "first", tmp_path / "second"
        code, text, error = run("pretrain", "--out", first)
        assert (code, text) == (0, "")
        assert error.splitlines()[-2:] == [
            f"model: {first / 'model'}",
            f"next:  densesiam-seg train IMAGES --weights {first}",
        ]
        code, text, error = run("train", "--out", second, "--weights", first)
        assert (code, text) == (0, "")
        assert f"weights: backbone and decoder of {first} (resnet18)" in error.splitlines()
        assert error.splitlines()[-2:] == [
            f"model: {second / 'model'}",
            f"next:  densesiam-seg predict IMAGE --model {second} --out mask.png",
        ]
        mask = tmp_path / "mask.png"
        assert cli("predict", image_folder / "01.png", "--model", second, "-o", mask)[0] == 0

    @BOTH
    def test_json_and_quiet_under_runs_and_then_the_latest(
        self, cli: Cli, run: Cli, image_folder: Path, out: Path, monkeypatch: Patch, command: str
    ) -> None:
        monkeypatch.chdir(out.parent)
        code, text, error = run(command, "--json", "--quiet")
        assert (code, error) == (0, "")
        value = json.loads(text)
        assert (value["complete"], value["last_epoch"]["epoch"]) == (True, 0)
        assert len(value["last_epoch"]["shares"]) == (4 if command == "train" else 5)
        latest = Path("runs") / command / "latest"
        assert latest.resolve() == Path(value["run"]).resolve()
        assert (latest / "model").resolve() == Path(value["model"]).resolve()
        code, _, error = cli("predict", image_folder / "01.png", "--out", "mask.png")
        assert (code, error) == (0, "1 mask written: mask.png\n")

    @BOTH
    def test_the_time_limit(self, cli: Cli, run: Cli, out: Path, command: str) -> None:
        code, text, error = run(command, "-o", out, "--max-time", "0.001", "--json")
        assert (code, json.loads(text)["complete"]) == (0, False)
        assert json.loads(text)["last_epoch"] is None
        assert f"go on with densesiam-seg {command} --resume --out {out}" in error
        code, text, _ = cli(command, "--resume", "-o", out, "--json")
        assert (code, json.loads(text)["complete"]) == (0, True)

    @BOTH
    def test_what_was_passed_over_is_told_and_kept(
        self, run: Cli, cli: Cli, image_folder: Path, tmp_path: Path, command: str
    ) -> None:
        """In a run inside the folder of its images, and when it is started anew there."""
        data = tmp_path / "data"
        data.mkdir()
        for name in ("00.jpg", "01.png", "02.jpg", "03.png"):
            (data / name).symlink_to(image_folder / name)
        (data / "again.jpg").symlink_to("00.jpg")
        (data / "far").symlink_to(image_folder)
        for more in ((), ("--overwrite",)):
            code, text, error = run(command, data, "-o", data / "run", "-q", "--json", *more)
            found = json.loads(text)["passed_over"]
            assert (code, found["linked_folders"], found["repeated"]) == (0, 1, 5)
            assert "1 linked folder not followed" in error.splitlines()[0]
            listed = json.loads((data / "run" / "dataset.json").read_text())
            assert listed["passed_over"] == found

    @BOTH
    def test_links_are_followed_on_demand(
        self, cli: Cli, tiny_settings: dict[str, Any], tmp_path: Path, command: str
    ) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "far").symlink_to(tmp_path / "real")
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "a.jpg").write_bytes(b"junk")
        refused(cli(command, tmp_path / "data"), 3, "input", "give --follow-links")
        code, _, error = cli(command, tmp_path / "data", "--follow-links", "-o", tmp_path / "run")
        assert code == 3 and "1 of 1 files cannot be used" in error


class TestReport:
    """`--report` among the arguments here: without it the runs of this file write none."""

    def test_training_ends_with_a_page(self, cli: Cli, run: Cli, out: Path) -> None:
        code, text, error = run("train", "-o", out, "--report", "--json")
        page = out / "report" / "index.html"
        assert (code, json.loads(text)["report"]) == (0, str(page))
        assert error.splitlines()[-3:-1] == [f"model: {out / 'model'}", f"report: {page}"]
        assert len(read_page(page).images) > 10
        assert run("train", "-o", out, "--overwrite", "-q")[0] == 0
        assert not page.exists()

    def test_it_can_be_left_out(self, run: Cli, out: Path) -> None:
        code, text, error = run("train", "-o", out, "--json")
        assert (code, json.loads(text)["report"]) == (0, None)
        assert not (out / "report").exists() and "report" not in error

    @pytest.mark.parametrize("failure", [OutputError("disk: is full; free some"), ValueError("x")])
    def test_a_failure_is_a_warning(
        self, run: Cli, out: Path, monkeypatch: Patch, failure: Exception
    ) -> None:
        def fail(*_: object) -> None:
            raise failure

        monkeypatch.setattr("densesiam_seg.reporting.report.replace_text", fail)
        code, text, error = run("train", "-o", out, "--report", "--json", "-q")
        assert (code, json.loads(text)["report"], json.loads(text)["complete"]) == (0, None, True)
        assert error.startswith("warning: no report: ") and str(failure) in error
        assert f"densesiam-seg report {out}" in error and len(error.splitlines()) == 1

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_at_once_and_loses_nothing(
        self, cli: Cli, run: Cli, image_folder: Path, out: Path, monkeypatch: Patch, number: int
    ) -> None:
        def stop(*_: object) -> None:
            os.kill(os.getpid(), number)
            time.sleep(5)

        monkeypatch.setattr("densesiam_seg.reporting.report.replace_text", stop)
        code, text, error = run("train", "-o", out, "--report", "-q")
        assert (code, text) == (128 + number, "") and "error[stopped]" in error
        assert read_status(out)["status"] == "done"
        mask = out.parent / "mask.png"
        assert cli("predict", image_folder / "01.png", "--model", out, "-o", mask)[0] == 0


class TestRefusals:
    """Nothing has been started, so stderr is the one line."""

    def test_images(self, cli: Cli, tmp_path: Path, out: Path) -> None:
        refused(cli("train", tmp_path / "none", "-o", out), 3, "input", "no such file or folder")
        refused(cli("train", tmp_path, "-o", out), 3, "input", "no image found")
        assert not out.exists()

    def test_fewer_images_than_a_batch(self, run: Cli, out: Path) -> None:
        found = run("train", "-o", out, "-b", "13", "-q")
        refused(found, 3, "input", "12 usable images cannot fill a batch of 13")

    def test_a_folder_of_junk(self, cli: Cli, tmp_path: Path, out: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(b"junk")
        code, text, error = cli("train", tmp_path, "-o", out, "-q")
        assert (code, text) == (3, "")
        assert error.splitlines()[-1].startswith("error[input]: ")
        assert "1 of 1 files cannot be used" in error

    def test_a_place_that_is_taken(self, cli: Cli, image_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        found = cli("train", image_folder, "-o", tmp_path)
        refused(found, 2, "usage", f"--out {tmp_path}: is not empty")
        found = cli("train", image_folder, "-o", tmp_path, "--overwrite")
        refused(found, 2, "usage", "which no run wrote")
        assert (tmp_path / "mine.txt").read_text() == "mine"
        found = cli("train", image_folder, "-o", tmp_path / "mine.txt")
        refused(found, 5, "output", "is not a folder")
        found = cli("train", image_folder, "-o", tmp_path / "model.pth")
        refused(found, 2, "usage", "called like a file")

    @BOTH
    def test_nothing_to_resume(
        self, cli: Cli, tmp_path: Path, monkeypatch: Patch, command: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        refused(cli(command, "--resume"), 2, "usage", f"runs/{command}: no run to resume")
        refused(cli(command, "--resume", "-o", "x"), 2, "usage", "holds no run to resume")

    @pytest.mark.parametrize(
        ("command", "words"),
        [
            ("train --batch-size many", "--batch-size many"),
            ("train --workers all", "--workers all"),
            ("train --max-time soon", "--max-time soon"),
            ("train --checkpoint-every 0", "--checkpoint-every 0"),
            ("train --checkpoint-every often", "--checkpoint-every often"),
            ("train --image-size 33", "image_size = 33"),
            ("train --balance fair", "balance = 'fair': must be one of"),
            ("train --method simsiam --image-weight 0", "no other loss is on"),
            ("train --resume --overwrite", "--resume goes on with the same run"),
            ("pretrain --max-time soon", "--max-time soon"),
            ("pretrain --grid 65", "grid = 65: must be 1 to 64"),
            ("pretrain --correspondence none --sampling uniform", "sampling = 'uniform'"),
        ],
    )
    def test_settings(
        self, cli: Cli, image_folder: Path, out: Path, command: str, words: str
    ) -> None:
        name, *arguments = command.split()
        refused(cli(name, image_folder, "-o", out, *arguments), 2, "usage", words)
        assert not out.exists()


class TestSeveralProcesses:
    @pytest.fixture
    def words(self, image_folder: Path, tmp_path: Path, tiny_settings: dict[str, Any]) -> list[str]:
        """A run of nine steps, as torchrun is to start it again and again."""
        settings = options({**tiny_settings, "prior": "none"})
        return ["train", str(image_folder), "--out", str(tmp_path / "run"), *settings, "--resume"]

    def test_a_run_goes_on_with_other_numbers_of_them(
        self, slim: None, cli: Cli, words: list[str], tmp_path: Path
    ) -> None:
        """Two take the first step, one the next, and two the others, of one and the same order of images."""
        run = tmp_path / "run"
        first = launched(2, *words, "--max-time", "0.001s", "--no-report")
        assert first.returncode == 0, first.stderr
        # The first of them speaks, and no other.
        assert first.stderr.count("training on 12 images") == 1
        assert first.stderr.count("stopped by the time limit") == 1
        assert [record["step"] for record in read_records(run / "metrics.jsonl")] == [1]
        code, _, told = cli(*words, "--max-time", "0.001s", "--no-report")
        assert code == 0, told
        assert "warning: resume is not bit-exact" in told
        assert "processes 2 -> 1" in told
        last = launched(2, *words, "--no-report")
        assert last.returncode == 0, last.stderr
        assert "processes 1 -> 2" in last.stderr
        assert read_status(run)["status"] == "done"
        whole = tmp_path / "whole"
        again = [str(whole) if word == str(run) else word for word in words]
        assert cli(*again, "--no-report")[0] == 0
        for one, other in zip(course(run), course(whole), strict=True):
            assert one["step"] == other["step"]
            assert one["losses"] == pytest.approx(other["losses"], rel=0.05)

    def test_mistakes_are_told_once(self, words: list[str], tmp_path: Path) -> None:
        without = [word for word in words if word not in ("--out", str(tmp_path / "run"))]
        found = launched(2, *without)
        assert found.returncode != 0
        assert found.stderr.count("error[usage]") == 1
        assert "--out" in found.stderr
        lost = launched(2, "train", tmp_path / "none", "--out", tmp_path / "other")
        assert lost.stderr.count("error[input]") == 1
        assert not (tmp_path / "other").exists()
