"""What a person sees of each command's events: people's lines on stderr, data on stdout."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console as Terminal

from densesiam_seg.cli.console import Console, print_evaluation
from densesiam_seg.config import TrainConfig
from densesiam_seg.demo import Demonstrated
from densesiam_seg.errors import ImageError, InputError, OutputError, PartialError
from densesiam_seg.evaluation.evaluate import Evaluation
from densesiam_seg.evaluation.metrics import match, score
from densesiam_seg.events import (
    EpochRecord,
    Notice,
    Predicted,
    Progress,
    Started,
    StepRecord,
    Trained,
)
from densesiam_seg.images.manifest import Skipped
from densesiam_seg.inference.predict import Plan

Streams = Callable[[], tuple[str, str]]

RUN = Path("runs/mine")
STEP = StepRecord(1, 0, {"pixel": 0.5, "total": 1.25}, 0.75, 0.1)
EPOCH = EpochRecord(3, 0, {"pixel": 0.25, "total": 1.0}, 0.9, 3, 0.8, [0.5, 0.3, 0.2, 0.0])
TRAINED = Trained(RUN, RUN / "model", EPOCH, complete=True)


def evaluation(counts: list[list[int]], **changes: Any) -> Evaluation:
    """Classes a (thing), b and c (stuff) under the matching of the counts."""
    table = np.array(counts, np.int64)
    matching = match(table)
    result = Evaluation(
        dataset="Tiny",
        split="val",
        protocol="picie: shorter side 32",
        images=2,
        expected=None,
        missing=(),
        digest="0",
        clusters=table.shape[1],
        readout="head",
        matching=matching,
        scores=score(table, matching, ("a", "b", "c"), ("thing", "stuff", "stuff")),
        counts=table,
    )
    return replace(result, **changes)


COUNTS = [[1, 3, 0], [0, 1, 3], [3, 0, 1]]


@pytest.fixture
def streams(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Streams:
    monkeypatch.setenv("COLUMNS", "100")

    def read() -> tuple[str, str]:
        out, error = capsys.readouterr()
        return out, error

    return read


class TestSay:
    def test_lines_go_to_stderr(self, streams: Streams) -> None:
        Console().say("hello")
        Console().say("careful", warning=True)
        assert streams() == ("", "hello\nwarning: careful\n")

    def test_quiet_leaves_warnings(self, streams: Streams) -> None:
        Console(quiet=True).say("hello")
        Console(quiet=True).say("careful", warning=True)
        assert streams() == ("", "warning: careful\n")

    @pytest.mark.parametrize("warning", [False, True])
    def test_names_are_shown_as_they_are_on_one_line(self, streams: Streams, warning: bool) -> None:
        """No markup, no emoji, no wrapping, no control codes."""
        name = "[/red] [bold]x[/bold] :cat: \\[ a\nb\r\x1b[2J " + os.fsdecode(b"\xff") + "y" * 200
        Console().say(name, warning=warning)
        _, error = streams()
        shown = r"[/red] [bold]x[/bold] :cat: \[ a\nb\r\x1b[2J \udcff" + "y" * 200
        assert error == ("warning: " if warning else "") + shown + "\n"

    def test_data_is_one_json_object_in_ascii(self, streams: Streams) -> None:
        Console(quiet=True).data({"name": "é" + os.fsdecode(b"\xff"), "value": float("nan")})
        out, error = streams()
        assert error == ""
        assert out.isascii()
        assert json.loads(out) == {"name": "é\udcff", "value": None}


class TestFollow:
    def test_progress_is_dropped_and_results_are_kept(self, streams: Streams) -> None:
        result = evaluation(COUNTS)
        events = [
            Progress("reading images", 1, 2),
            Notice("n"),
            STEP,
            EPOCH,
            Progress("scoring", 1, 2),
            result,
            TRAINED,
        ]
        assert Console(quiet=True).follow(events) == [EPOCH, result, TRAINED]
        assert streams() == ("", "")
        assert Console().follow([Progress("clustering for epoch 1", 1, 2)]) == []
        assert streams() == ("", "")

    def test_without_a_terminal_only_whole_lines(self, streams: Streams) -> None:
        started = Started(RUN, TrainConfig(), 40, 0, 9)
        Console().follow(
            [
                Progress("reading images", 1, 1),
                Notice("note"),
                Notice("odd", warning=True),
                started,
                STEP,
                EPOCH,
            ]
        )
        out, error = streams()
        assert out == ""
        assert error.splitlines() == ["note", "warning: odd", str(started), str(EPOCH)]

    def test_a_terminal_shows_a_bar_with_the_losses(self) -> None:
        console, screen = Console(), io.StringIO()
        console.terminal = Terminal(file=screen, force_terminal=True, width=200)
        started = Started(RUN, TrainConfig(epochs=3), 40, 0, 9)
        prepared = [
            Progress("clustering for epoch 2", 8, 12),
            Progress("clustering for epoch 2", 12, 12),
        ]
        events = [
            Progress("reading images", 1, 2),
            Progress("reading images", 2, 2),
            started,
            *prepared,
            STEP,
            EPOCH,
            Progress("scoring", 1, 4),
        ]
        console.follow(events)
        console.follow([Predicted("a", Path("a.png"))])
        shown = screen.getvalue()
        for words in ("reading images", "epoch 1/3", "pixel 0.500 total 1.250", "scoring", "masks"):
            assert words in shown
        assert "clustering for epoch 2" in shown

    def test_an_error_passes_through(self) -> None:
        def events() -> Any:
            yield Progress("reading images", 1, 2)
            raise InputError("x")

        with pytest.raises(InputError):
            Console().follow(events())


class TestTraining:
    def test_the_end_says_where_the_model_is_and_what_to_do_next(self, streams: Streams) -> None:
        Console().training([EPOCH, TRAINED])
        out, error = streams()
        assert out == ""
        assert error.splitlines()[-2:] == [
            "model: runs/mine/model",
            "next:  densesiam-seg predict IMAGE --model runs/mine --out mask.png",
        ]

    def test_after_pre_training_comes_training(self, streams: Streams) -> None:
        Console().training([EPOCH, TRAINED], command="pretrain")
        assert streams()[1].splitlines()[-2:] == [
            "model: runs/mine/model",
            "next:  densesiam-seg train IMAGES --weights runs/mine",
        ]
        Console().training([replace(TRAINED, complete=False)], command="pretrain")
        assert "go on with densesiam-seg pretrain --resume --out runs/mine" in streams()[1]

    def test_an_epoch_that_clusters_nothing(self, streams: Streams) -> None:
        last = EpochRecord(3, 0, {"image": -0.5, "total": -0.5}, 0.9, 0, 0.0, [], spread=0.75)
        Console().training([last, replace(TRAINED, last=last)], json=True)
        out, error = streams()
        assert error.splitlines()[0] == (
            "epoch 1: loss -0.500 (image -0.500), views agree 90 %, spread 0.75"
        )
        value = json.loads(out)["last_epoch"]
        assert (value["shares"], value["spread"], value["disjoint"]) == ([], 0.75, 0)

    def test_json(self, streams: Streams) -> None:
        Console(quiet=True).training([EPOCH, TRAINED], json=True)
        out, error = streams()
        assert error == ""
        value = json.loads(out)
        assert value["run"] == "runs/mine"
        assert value["model"] == "runs/mine/model"
        assert value["complete"] is True
        assert value["last_epoch"]["clusters_in_use"] == 3

    def test_a_run_that_ran_out_of_time_says_how_to_go_on(self, streams: Streams) -> None:
        Console().training([replace(TRAINED, complete=False, last=None)], json=True)
        out, error = streams()
        assert json.loads(out)["last_epoch"] is None
        assert "go on with densesiam-seg train --resume --out runs/mine" in error


class TestPredicting:
    plan = Plan(Path("o"), ("a.jpg", "b.jpg"), (Path("o/a.png"), Path("o/b.png")))
    good = Predicted("a.jpg", Path("o/a.png"))
    bad = Predicted("b.jpg", None, ImageError("b.jpg", "empty", "is empty (0 bytes)"))

    def test_masks_and_their_place(self, streams: Streams) -> None:
        done = [self.good, Predicted("b.jpg", Path("o/b.png"))]
        Console().predicting(self.plan, (), done)
        assert streams() == ("", "2 masks written: o\n")

    def test_one_mask(self, streams: Streams) -> None:
        Console().predicting(Plan(Path(), ("a.jpg",), (Path("m.png"),)), (), [self.good])
        assert streams() == ("", "1 mask written: m.png\n")

    def test_a_rerun_tells_what_it_kept(self, streams: Streams) -> None:
        Console().predicting(replace(self.plan, done=5), (), [self.good, self.good])
        assert streams()[1] == "2 masks written, 5 kept: o\n"

    def test_failures_are_warnings_and_then_the_error(self, streams: Streams) -> None:
        skipped = [Skipped("c.jpg", "dangling-link", "c.jpg: is a link to nothing; remove it")]
        with pytest.raises(PartialError, match="2 of 3 images failed"):
            Console(quiet=True).predicting(self.plan, skipped, [self.good, self.bad])
        assert streams()[1].splitlines() == [
            "warning: skipped (dangling-link): c.jpg: is a link to nothing; remove it",
            "warning: failed: b.jpg: is empty (0 bytes); remove or convert it",
        ]

    def test_a_single_failure_is_told_once(self, streams: Streams) -> None:
        with pytest.raises(ImageError):
            Console().predicting(Plan(Path(), ("b.jpg",), (Path("m.png"),)), (), [self.bad])
        assert streams() == ("", "")

    def test_json_also_when_some_failed(self, streams: Streams) -> None:
        with pytest.raises(PartialError):
            Console(quiet=True).predicting(self.plan, (), [self.good, self.bad], json=True)
        assert json.loads(streams()[0]) == {
            "masks": [{"image": "a.jpg", "mask": "o/a.png"}],
            "failed": [{"image": "b.jpg", "message": str(self.bad.error)}],
            "skipped": [],
            "kept": 0,
        }


class TestEvaluating:
    def test_the_table_is_data(self, streams: Streams) -> None:
        """Class a: IoU 3 / 5, accuracy 3 / 4, a third of the pixels, cluster 1."""
        Console(quiet=True).evaluating([Progress("scoring", 1, 1), evaluation(COUNTS)])
        out, error = streams()
        assert error == ""
        rows = [line.replace("│", " ").split() for line in out.splitlines()]
        assert ["a", "60.0", "75.0", "33.3", "1"] in rows
        assert ["c", "60.0", "75.0", "33.3", "0"] in rows
        assert out.splitlines()[-3:] == [
            "images 2; clusters 3 (head), in use 3",
            "protocol picie: shorter side 32; matching hungarian, one for the whole set",
            "mean IoU 60.00, things 60.00, stuff 60.00; mean accuracy 75.00; pixel accuracy 75.00",
        ]

    def test_absent_classes_and_missing_images_are_told(self, streams: Streams) -> None:
        result = evaluation([[2, 0], [0, 2], [0, 0]], expected=5, missing=("x", "y", "z"))
        Console(quiet=True).evaluating([result])
        out, error = streams()
        rows = [line.replace("│", " ").split() for line in out.splitlines()]
        assert ["c", "–", "–", "0.0", "–"] in rows
        assert "images 2 of 5; clusters 2 (head), in use 2" in out
        assert "absent classes, left out of the means: c" in out
        assert "mean IoU 100.00, things 100.00, stuff 100.00;" in out
        assert error == "warning: 3 images were missing, first x\n"

    def test_several_clusters_of_a_class(self, streams: Streams) -> None:
        print_evaluation(evaluation([[1, 0, 0, 9], [0, 1, 0, 0], [0, 0, 2, 0]]))
        rows = [line.replace("│", " ").split() for line in streams()[0].splitlines()]
        assert ["a", "100.0", "100.0", "76.9", "0", "3"] in rows

    def test_names_are_whole_whatever_the_width(
        self, streams: Streams, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "60")
        name = "[/red]:cat:" + "x" * 40
        result = evaluation(COUNTS)
        print_evaluation(replace(result, scores=replace(result.scores, names=(name, "b", "c"))))
        cells = [line.split("│")[1].strip() for line in streams()[0].splitlines() if "│" in line]
        assert "".join(cells).startswith(name)

    def test_json_and_the_file_are_equal(self, streams: Streams, tmp_path: Path) -> None:
        Console().evaluating([evaluation(COUNTS)], json=True, out=tmp_path / "r.json")
        out, _ = streams()
        assert json.loads(out) == json.loads((tmp_path / "r.json").read_text())
        assert json.loads(out)["counts"] == COUNTS

    def test_the_result_is_shown_where_the_file_cannot_be_written(
        self, streams: Streams, tmp_path: Path
    ) -> None:
        with pytest.raises(OutputError):
            Console().evaluating([evaluation(COUNTS)], out=tmp_path / "absent" / "r.json")
        assert "mean IoU 60.00" in streams()[0]


class TestDemonstrating:
    done = Demonstrated(
        Path("d"),
        Path("d/demo.png"),
        evaluation(COUNTS),
        evaluation([[2, 2, 0], [0, 2, 2], [2, 0, 2]], readout="colour + position"),
    )

    def test_both_scores_and_what_to_look_at(self, streams: Streams) -> None:
        Console().demonstrating([Notice("drawing"), self.done])
        out, error = streams()
        assert out.splitlines()[-1] == (
            "held-out scenes: densesiam-seg 60.0 mean IoU, 75.0 pixel accuracy; "
            "k-means on colour + position 33.3 and 50.0"
        )
        assert error.splitlines() == [
            "drawing",
            "picture: d/demo.png",
            "masks:   d/masks",
            "next:    densesiam-seg train YOUR_IMAGES/",
        ]

    def test_json(self, streams: Streams) -> None:
        Console(quiet=True).demonstrating([self.done], json=True)
        out, error = streams()
        assert error == ""
        value = json.loads(out)
        assert value["picture"] == "d/demo.png"
        assert value["learned"]["scores"]["mean_iou"] == pytest.approx(60)
        assert value["baseline"]["readout"] == "colour + position"
