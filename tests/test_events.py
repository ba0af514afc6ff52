"""The events of a run: their text for people."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from densesiam_seg.config import PretrainConfig, TrainConfig
from densesiam_seg.events import Event, Notice, Progress, Started, Trained


def test_a_notice_is_its_text_and_a_warning_says_so() -> None:
    assert str(Notice("weights: none")) == "weights: none"
    assert str(Notice("collapsing", warning=True)) == "warning: collapsing"


def test_a_start_tells_how_much_there_is_to_do() -> None:
    started = Started(Path("runs/a"), TrainConfig(epochs=3), images=40, step=0, total_steps=30)
    assert str(started) == "training on 40 images, 3 epochs, 30 steps, into runs/a"
    started = dataclasses.replace(started, config=PretrainConfig())
    assert str(started) == "training on 40 images, 100 epochs, 30 steps, into runs/a"


def test_a_resumed_start_tells_from_where() -> None:
    started = Started(Path("runs/a"), TrainConfig(epochs=3), images=40, step=12, total_steps=30)
    assert str(started) == "training on 40 images, 3 epochs, 30 steps from step 12, into runs/a"


@pytest.mark.parametrize(
    "event",
    [
        Notice("a"),
        Progress("reading images", 1, 2),
        Progress("features of the frozen backbone", 1, 2),
        Progress("clustering for epoch 1", 1, 2),
        Trained(Path("r"), Path("r/model"), None, complete=False),
    ],
)
def test_events_are_values(event: Event) -> None:
    assert event == dataclasses.replace(event)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.text = "b"  # type: ignore[misc, union-attr]
