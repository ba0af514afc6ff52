"""A sequence of names without an object for each of them: it reads as the tuple of the same names does."""

from __future__ import annotations

import copy
import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densesiam_seg.packed.names import Names

ODD = ("", "a/b.jpg", "\udcff\udc80.png", "new\nline", "ä😀", "\ud83d\ude00")
"""The last is two surrogates that no decoder may join."""
text = st.text(st.characters(codec=None), max_size=6)


@given(st.lists(text, max_size=12), st.slices(12))
def test_it_reads_as_a_tuple_does(listed: list[str], part: slice) -> None:
    names, expected = Names(listed), tuple(listed)
    assert len(names) == len(expected)
    assert list(names) == listed
    assert [names[place] for place in range(-len(listed), len(listed))] == [*listed, *listed]
    assert tuple(names[part]) == expected[part]
    assert names == expected
    assert hash(names) == hash(expected)
    assert names == Names(iter(listed))
    assert [name in names for name in (*listed, "not there")] == [*(True for _ in listed), False]
    assert list(reversed(names)) == listed[::-1]


def test_unlike_names() -> None:
    names = Names(ODD)
    assert tuple(names) == ODD
    assert names != ODD[:-1] and names != (*ODD[:-1], "other") and names != Names(ODD[::-1])
    # The same text, cut elsewhere.
    assert Names(["ab", "c"]) != Names(["a", "bc"])
    assert names != list(ODD)  # as of a tuple
    with pytest.raises(IndexError):
        names[len(ODD)]
    with pytest.raises(IndexError):
        names[-len(ODD) - 1]


def test_copies_are_the_same() -> None:
    names = Names(ODD)
    assert pickle.loads(pickle.dumps(names)) == names
    assert copy.deepcopy(names) == names


def test_it_needs_no_object_for_each() -> None:
    count = 20_000
    tracemalloc.start()
    names = Names(f"{place:020d}" for place in range(count))
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 20 bytes of text and 8 of its place, and what lists keep for growth.
    assert 28 * count <= size <= 34 * count
    assert peak <= 40 * count
    assert names[777] == f"{777:020d}"
