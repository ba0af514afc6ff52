"""Results and errors on their way from one process to another."""

from __future__ import annotations

import pickle

import pytest

from densesiam_seg.errors import ImageError
from densesiam_seg.peers.outcome import outcome_of, result_of


def sent(number: int) -> object:
    def work() -> int:
        if number == 13:
            raise ImageError("a.png", "truncated", "is truncated")
        return 10 // number

    return pickle.loads(pickle.dumps(outcome_of(work)))


def test_a_result() -> None:
    assert result_of(sent(5)) == 2


def test_an_error_is_raised_where_the_result_is_wanted() -> None:
    outcome = sent(13)
    with pytest.raises(ImageError, match="truncated") as found:
        result_of(outcome)
    assert (found.value.path, found.value.reason) == ("a.png", "truncated")


def test_a_bug_is_not_sent() -> None:
    with pytest.raises(ZeroDivisionError):
        sent(0)
