"""Compact columns behave like the tuples they stand for."""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densesiam_seg.images import columns
from densesiam_seg.images.columns import Column, Integers, Names, encoded, joined

ODD = (
    "",
    "plain.jpg",
    "new\nline",
    "nul\0inside\0",
    "caf\u00e9",
    "cafe\u0301",
    "\U0001f600",
    "\ud83d\ude00",  # two surrogates, which are not the one character of a pair
    os.fsdecode(b"bad\xff\x80.jpg"),
    "木" * 300,
)
NUMBERS = (0, -1, 2**63 - 1, -(2**63), 5)

texts = st.lists(st.text(st.characters(exclude_categories=()), max_size=5), max_size=12)
numbers = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=12)


def both() -> list[tuple[Column[Any], tuple[Any, ...]]]:
    return [(Names.of(ODD), ODD), (Integers.of(NUMBERS), NUMBERS)]


def test_items_length_and_order() -> None:
    for column, items in both():
        assert len(column) == len(items)
        assert list(column) == list(items)
        assert list(reversed(column)) == list(reversed(items))
        for index in range(-len(items), len(items)):
            assert column[index] == items[index]
        for index in (-len(items) - 1, len(items)):
            with pytest.raises(IndexError):
                column[index]
        assert items[2] in column
        assert column.index(items[3]) == 3


def test_items_are_plain_objects() -> None:
    assert [type(item) for item in Integers.of(NUMBERS)] == [int] * len(NUMBERS)
    assert type(Integers.of(NUMBERS)[1]) is int
    assert type(Names.of(ODD)[1]) is str


@pytest.mark.parametrize("cut", [slice(2, 4), slice(None, None, -1), slice(-3, None), slice(4, 1)])
def test_slices(cut: slice) -> None:
    for column, items in both():
        assert column[cut] == items[cut]
        assert type(column[cut]) is type(column)


def test_take() -> None:
    places = np.array([3, 0, 3])
    for column, items in both():
        assert column.take(places) == (items[3], items[0], items[3])
        assert column.take(np.array([], np.intp)) == ()


def test_equality_and_hash() -> None:
    for (column, items), (again, _) in zip(both(), both(), strict=True):
        assert column == again and column == items and items == column
        assert hash(column) == hash(again) == hash(items)
        assert column != items[1:] and column != again[1:]
        assert column != list(items)
    # The same characters, cut at other places.
    assert Names.of(["ab", "c"]) != Names.of(["a", "bc"])
    assert Integers.of([]) != Names.of([])


def test_columns_are_read_only() -> None:
    for column, _ in both():
        with pytest.raises(TypeError):
            column[0] = "x"  # type: ignore[index]


def test_of_a_column_is_that_column() -> None:
    names, integers = Names.of(ODD), Integers.of(NUMBERS)
    assert Names.of(names) is names
    assert Integers.of(integers) is integers


def test_numbers_of_more_than_64_bits() -> None:
    with pytest.raises(OverflowError):
        Integers.of([2**63])


def test_shown_and_pickled() -> None:
    assert repr(Names.of(["a", "b"])) == "Names.of(('a', 'b'))"
    assert repr(Integers.of([1])) == "Integers.of((1,))"
    for column, _ in both():
        assert pickle.loads(pickle.dumps(column)) == column


@given(texts, numbers)
def test_round_trip_across_blocks(texts: list[str], numbers: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BLOCK", 3)
        assert list(Names.of(texts)) == texts
        assert list(Integers.of(numbers)) == numbers
        places = np.arange(len(texts))[::-1]
        assert list(Names.of(texts).take(places)) == texts[::-1]


@given(texts)
def test_bytes_sort_as_code_points_do(texts: list[str]) -> None:
    assert sorted(texts) == sorted(texts, key=encoded)


def test_texts_without_their_first_and_last_bytes() -> None:
    data = b"/root/a\0/root/\xc3\xa9.jpg\0"
    bounds = np.array([0, 8, 21])
    assert Names(*joined(data, bounds, np.array([1, 0]), head=6, tail=1)) == ("é.jpg", "a")
