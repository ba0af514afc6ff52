"""Parts of lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densesiam_seg.errors import UsageError
from densesiam_seg.peers.shard import Shard, launched, own_shard, parse_shard


@given(st.integers(0, 1000), st.integers(1, 40))
def test_parts_are_the_whole_in_order_and_alike(total: int, count: int) -> None:
    parts = [Shard(index, count).part(total) for index in range(count)]
    assert [place for part in parts for place in part] == list(range(total))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1


def test_seven_images_on_four() -> None:
    assert [list(Shard(index, 4).part(7)) for index in range(4)] == [[0], [1, 2], [3, 4], [5, 6]]


def test_a_shard_is_written_as_a_fraction() -> None:
    assert parse_shard("2/8") == Shard(2, 8)
    assert str(Shard(2, 8)) == "2/8"


@pytest.mark.parametrize("text", ["", "3", "3/", "/3", "3/3", "-1/3", "0/0", "1.0/2", "a/b", "²/3"])
def test_other_shards_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_shard(text)


def test_a_launcher_names_the_shard() -> None:
    assert launched({}) == Shard()
    assert launched({"RANK": "3", "WORLD_SIZE": "4"}) == Shard(3, 4)
    for wrong in ({"RANK": "3"}, {"WORLD_SIZE": "2"}, {"RANK": "4", "WORLD_SIZE": "4"}):
        with pytest.raises(UsageError):
            launched(wrong)


def test_the_part_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert own_shard() is None and own_shard(Shard()) == Shard()
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert own_shard() == Shard(2, 3) and own_shard(Shard(0, 9)) == Shard(0, 9)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert own_shard() is None
