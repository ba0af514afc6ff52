"""Masks that are kept, made ahead, and dropped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from densesiam_seg.errors import ImageError
from densesiam_seg.serving import masks as module
from densesiam_seg.serving.masks import KEPT, Masks, Segmented

TINY = 4 * 2 * 3 * 3 + 9
"""Bytes of one of these masks."""


class Maker:
    """Makes masks that tell their image's place, and notes which; waits while `gate` is shut."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken: set[int] = set()
        self.at_once = self.most = 0

    def __call__(self, index: int) -> Segmented:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        assert self.gate.wait(20)
        self.made.append(index)
        self.at_once -= 1
        if index in self.broken:
            raise ImageError(str(index), "truncated", "ends early")
        return Segmented(torch.zeros(2, 3, 3), np.full((3, 3), index, np.uint8))


@pytest.fixture
def make() -> Maker:
    return Maker()


@pytest.fixture
def masks(make: Maker) -> Iterator[Masks]:
    found = Masks(make)
    yield found
    make.gate.set()
    found.close()


def test_each_is_made_once(make: Maker, masks: Masks) -> None:
    assert [int(masks.get(index).ids[0, 0]) for index in (3, 3, 1, 3)] == [3, 3, 1, 3]
    assert make.made == [3, 1]
    assert masks.get(1).bytes == TINY


def test_one_at_a_time_whoever_asks(make: Maker, masks: Masks) -> None:
    threads = [threading.Thread(target=masks.get, args=(k % 5,)) for k in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(make.made) == [0, 1, 2, 3, 4] and make.most == 1


def test_the_next_one_is_made_ahead(make: Maker, masks: Masks) -> None:
    masks.ahead(7)
    until = time.monotonic() + 20
    while make.made != [7] and time.monotonic() < until:
        time.sleep(0.005)
    masks.get(7)
    assert make.made == [7]


def test_the_longest_unused_is_dropped(make: Maker, masks: Masks) -> None:
    for index in range(KEPT):
        masks.get(index)
    masks.get(0)
    masks.get(KEPT)  # takes the place of 1
    make.made.clear()
    masks.get(0)
    masks.get(1)
    assert make.made == [1]


def test_fewer_where_they_are_large(
    make: Maker, masks: Masks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROOM", TINY)
    for index in (0, 1, 2):
        masks.get(index)
    make.made.clear()
    masks.get(2)
    masks.get(1)
    assert make.made == []
    masks.get(0)
    assert make.made == [0]


def test_those_that_were_passed_over_are_not_made(make: Maker, masks: Masks) -> None:
    make.gate.clear()
    for index in range(KEPT + 5):
        masks.ahead(index)
    make.gate.set()
    masks.get(KEPT + 4)
    assert make.made[0] == 0 and make.made[1:] == [*range(5, KEPT + 5)]


def test_a_failure_is_tried_again(make: Maker, masks: Masks) -> None:
    make.broken = {2}
    for _ in range(2):
        with pytest.raises(ImageError):
            masks.get(2)
    make.broken = set()
    assert masks.get(2).ids[0, 0] == 2 and make.made == [2, 2, 2]
