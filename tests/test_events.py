"""The events of a run: their text for people, and when an epoch has collapsed."""

from __future__ import annotations

from pathlib import Path

import pytest

from densesiam_seg.config import PretrainConfig, RunConfig, TrainConfig
from densesiam_seg.events import EpochRecord, Notice, Started


def test_a_notice_is_its_text_and_a_warning_says_so() -> None:
    assert str(Notice("weights: none")) == "weights: none"
    assert str(Notice("collapsing", warning=True)) == "warning: collapsing"


@pytest.mark.parametrize(
    ("config", "step", "text"),
    [
        (TrainConfig(), 0, "training on 40 images, 10 epochs, 30 steps, into runs/a"),
        (
            PretrainConfig(),
            12,
            "training on 40 images, 100 epochs, 30 steps from step 12, into runs/a",
        ),
    ],
)
def test_a_start_tells_how_much_there_is_to_do(config: RunConfig, step: int, text: str) -> None:
    assert str(Started(Path("runs/a"), config, images=40, step=step, total_steps=30)) == text


def epoch(shares: list[float], spread: float | None = None, disjoint: int = 0) -> EpochRecord:
    used = sum(share > 0 for share in shares)
    losses = {"pixel": 0.25, "total": 1.0}
    return EpochRecord(3, 0, losses, 0.9, used, 0.8, shares, disjoint, spread)


def test_an_epoch_tells_what_is_known() -> None:
    first = "epoch 1: loss 1.000 (pixel 0.250), views agree 90 %"
    assert str(epoch([0.5, 0.5, 0.0])) == f"{first}, clusters in use 2/3"
    assert str(epoch([], 0.75, 2)) == f"{first}, spread 0.75, 2 pairs of views without overlap"


@pytest.mark.parametrize(
    ("shares", "spread", "collapsed"),
    [
        ([0.4, 0.6, 0.0, 0.0], None, False),
        ([1.0, 0.0, 0.0], None, True),
        ([0.91, 0.05, 0.04], None, True),
        ([0.4, 0.6, 0.0, 0.0, 0.0], None, True),
        ([], None, False),
        ([1.0, 0.0, 0.0], 0.3, False),
        ([0.4, 0.6], 0.29, True),
    ],
)
def test_collapsed(shares: list[float], spread: float | None, collapsed: bool) -> None:
    assert epoch(shares, spread).collapsed() is collapsed


def test_unused_clusters_are_no_collapse_where_some_are_to_spare() -> None:
    assert not epoch([0.4, 0.6, 0.0, 0.0, 0.0], None).collapsed(spare=True)
    assert epoch([0.91, 0.09, 0.0, 0.0, 0.0], None).collapsed(spare=True)
