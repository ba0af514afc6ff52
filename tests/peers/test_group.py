"""Groups of processes: sums, agreement, shared work and its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import in_ranks

from densesiam_seg.errors import ImageError, InputError, UsageError
from densesiam_seg.peers.group import ALONE, Group, joined


def everything(group: Group) -> dict[str, Any]:
    rank = group.index

    def refuse() -> int:
        raise ImageError("a.png", "truncated", "is truncated")

    def odd(item: int) -> int:
        if item == 3:
            raise InputError(f"{item} is odd")
        return item

    try:
        group.by_first(refuse)
        refused = ""
    except ImageError as error:
        refused = f"{error} {error.reason}"
    try:
        list(group.dealt(odd, [0, 2, 3, 4, 6]))
        raised = ""
    except InputError as error:
        raised = str(error)

    def last() -> int:
        if group.index == group.count - 1:
            raise UsageError("cuda is not present here")
        return rank

    try:
        group.by_each(last)
        alike = ""
    except UsageError as error:
        alike = f"{error}, told by the first: {error.told == (rank > 0)}"
    return {
        "by_each": group.by_each(lambda: rank) - rank,
        "alike": alike,
        "total": group.total(torch.tensor([rank, 2**60])).tolist(),
        "largest": group.largest([rank, -rank]),
        "gathered": group.gathered(f"rank {rank}"),
        "by_first": group.by_first(lambda: rank + 7),
        "refused": refused,
        "dealt": list(group.dealt(lambda item: item * item, range(7))),
        "raised": raised,
    }


def test_three_processes_agree() -> None:
    expected = {
        "by_each": 0,
        "alike": "cuda is not present here, told by the first: True",
        "total": [3, 3 * 2**60],
        "largest": [2, 0],
        "gathered": ["rank 0", "rank 1", "rank 2"],
        "by_first": 7,
        "refused": "a.png: is truncated; remove or convert it truncated",
        "dealt": [0, 1, 4, 9, 16, 25, 36],
        "raised": "3 is odd",
    }
    assert in_ranks(3, everything) == [expected] * 3


def test_one_process_is_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as group:
        assert group is ALONE
    values = torch.tensor([3])
    assert group.total(values) is values
    assert group.largest([3, -1]) == [3, -1]
    assert group.gathered("a") == ["a"]
    assert list(group.dealt(str, [1, 2])) == ["1", "2"]


def test_a_launcher_must_say_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match="MASTER_ADDR"), joined():
        pass
