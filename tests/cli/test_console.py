"""What a person sees of a command's events: people's lines on stderr, data on stdout."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import Patch
from rich.console import Console as Terminal

from densesiam_seg.cli.console import Console, means
from densesiam_seg.config import TrainConfig
from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.evaluation.metrics import match, score
from densesiam_seg.events import EpochRecord, Notice, Predicted, Progress, Started, StepRecord
from densesiam_seg.images.manifest import PassedOver, Skipped

Streams = Callable[[], tuple[str, str]]

STARTED = Started(Path("runs/mine"), TrainConfig(epochs=3), 40, 0, 9)
STEP = StepRecord(1, 0, {"pixel": 0.5, "total": 1.25}, 0.75, 0.1)
EPOCH = EpochRecord(3, 0, {"pixel": 0.25, "total": 1.0}, 0.9, 3, 0.8, [0.5, 0.3, 0.2, 0.0])
COUNTS = [[1, 3, 0], [0, 1, 3], [3, 0, 1]]


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


@pytest.fixture
def streams(capsys: pytest.CaptureFixture[str], monkeypatch: Patch) -> Streams:
    monkeypatch.setenv("COLUMNS", "100")

    def read() -> tuple[str, str]:
        out, error = capsys.readouterr()
        return out, error

    return read


class TestSay:
    @pytest.mark.parametrize(("quiet", "first"), [(False, ["hello"]), (True, [])])
    def test_lines_go_to_stderr_and_quiet_leaves_warnings(
        self, streams: Streams, quiet: bool, first: list[str]
    ) -> None:
        console = Console(quiet=quiet)
        console.say("hello")
        console.say("careful", warning=True)
        console.skipped([Skipped("c.jpg", "dangling-link", "c.jpg: is a link to nothing")])
        console.failed([Predicted("b.jpg", None, ImageError("b.jpg", "empty", "is empty"))])
        out, error = streams()
        assert out == ""
        assert error.splitlines() == [
            *first,
            "warning: careful",
            "warning: skipped (dangling-link): c.jpg: is a link to nothing",
            "warning: failed: b.jpg: is empty; remove or convert it",
        ]

    def test_what_was_passed_over_is_one_line_if_anything(self, streams: Streams) -> None:
        """And a warning where images may be missing."""
        console = Console()
        for found in (PassedOver(), PassedOver(hidden=1), PassedOver(linked_folders=2)):
            console.passed_over(found)
        first, second = streams()[1].splitlines()
        assert first == "passed over: 1 hidden image or folder"
        assert second.startswith("warning: passed over: 2 linked folders")

    @pytest.mark.parametrize("warning", [False, True])
    def test_names_are_shown_as_they_are_on_one_line(self, streams: Streams, warning: bool) -> None:
        """No markup, no emoji, no wrapping, no control codes."""
        name = "[/red] [bold]x[/bold] :cat: \\[ a\nb\r\x1b[2J " + os.fsdecode(b"\xff") + "y" * 200
        Console().say(name, warning=warning)
        shown = r"[/red] [bold]x[/bold] :cat: \[ a\nb\r\x1b[2J \udcff" + "y" * 200
        assert streams()[1] == ("warning: " if warning else "") + shown + "\n"

    def test_data_is_one_json_object_in_ascii(self, streams: Streams) -> None:
        Console(quiet=True).data({"name": "é" + os.fsdecode(b"\xff"), "value": float("nan")})
        out, error = streams()
        assert (error, out.isascii()) == ("", True)
        assert json.loads(out) == {"name": "é\udcff", "value": None}


class TestFollow:
    def test_progress_is_dropped_and_results_are_kept(self, streams: Streams) -> None:
        result = evaluation(COUNTS)
        mask = Predicted("a", Path("a.png"))
        events = [Progress("reading images", 1, 2), Notice("n"), STARTED, STEP, EPOCH, mask, result]
        assert Console(quiet=True).follow(events) == [EPOCH, mask, result]
        assert streams() == ("", "")

    def test_without_a_terminal_only_whole_lines(self, streams: Streams) -> None:
        notices = [Notice("note"), Notice("odd", warning=True)]
        Console().follow([Progress("reading images", 1, 1), *notices, STARTED, STEP, EPOCH])
        out, error = streams()
        assert out == ""
        assert error.splitlines() == ["note", "warning: odd", str(STARTED), str(EPOCH)]

    def test_a_terminal_shows_a_bar_with_the_losses(self) -> None:
        console, screen = Console(), io.StringIO()
        console.terminal = Terminal(file=screen, force_terminal=True, width=200)
        console.follow(
            [
                Progress("reading images", 1, 2),
                Progress("reading images", 2, 2),
                STARTED,
                Progress("clustering for epoch 2", 8, 12),
                STEP,
                EPOCH,
                Progress("scoring", 1, 4),
            ]
        )
        console.follow([Predicted("a", Path("a.png"))])
        shown = screen.getvalue()
        for words in ("reading images", "clustering for epoch 2", "epoch 1/3", "scoring", "masks"):
            assert words in shown
        assert "pixel 0.500 total 1.250" in shown

    def test_an_error_passes_through(self) -> None:
        def events() -> Iterator[Any]:
            yield Progress("reading images", 1, 2)
            raise InputError("x")

        with pytest.raises(InputError):
            Console().follow(events())


class TestScores:
    def rows(self, result: Evaluation, streams: Streams) -> tuple[list[list[str]], list[str]]:
        """Cells of the table, and the lines after it."""
        Console(quiet=True).scores(result)
        out, error = streams()
        assert error == ""
        lines = out.splitlines()
        return [line.replace("│", " ").split() for line in lines], lines

    def test_by_hand(self, streams: Streams) -> None:
        """Class a: IoU 3 / 5, accuracy 3 / 4, a third of the pixels, cluster 1."""
        rows, lines = self.rows(evaluation(COUNTS), streams)
        assert ["a", "60.0", "75.0", "33.3", "1"] in rows
        assert ["c", "60.0", "75.0", "33.3", "0"] in rows
        assert lines[-3:] == [
            "images 2; clusters 3 (head), in use 3",
            "protocol picie: shorter side 32; matching hungarian, one for the whole set",
            "mean IoU 60.00, things 60.00, stuff 60.00; mean accuracy 75.00; pixel accuracy 75.00",
        ]
        assert means(evaluation(COUNTS).scores) == (
            "mean IoU 60.00; mean accuracy 75.00; pixel accuracy 75.00"
        )

    def test_absent_classes_and_several_clusters_of_a_class(self, streams: Streams) -> None:
        result = evaluation([[1, 0, 1, 9], [0, 1, 0, 0], [0, 0, 0, 0]], expected=5)
        rows, lines = self.rows(result, streams)
        assert ["c", "–", "–", "0.0", "–"] in rows
        assert ["a", "100.0", "100.0", "91.7", "0", "2", "3"] in rows
        assert "images 2 of 5; clusters 4 (head), in use 4" in lines
        assert "absent classes, left out of the means: c" in lines

    def test_names_are_whole_whatever_the_width(self, streams: Streams, monkeypatch: Patch) -> None:
        monkeypatch.setenv("COLUMNS", "60")
        name = "[/red]:cat:" + "x" * 40
        result = evaluation(COUNTS)
        result = replace(result, scores=replace(result.scores, names=(name, "b", "c")))
        _, lines = self.rows(result, streams)
        cells = [line.split("│")[1].strip() for line in lines if "│" in line]
        assert "".join(cells).startswith(name)
