"""The order of very many names is that of Python's own strings."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from densesiam_seg.images.columns import encoded
from densesiam_seg.images.ordering import WORD, ascending

ODD = [
    "caf\u00e9",
    "cafe\u0301",
    "new\nline",
    os.fsdecode(b"bad\xff"),
    os.fsdecode(b"bad\x80"),
    "bad\ue000",
    "bad\uffff",
    "bad\U0001f600",
    "bad\ud7ff",
    "\ud83d\ude00",
]
"""NFC and NFD, lone surrogates and what lies on both sides of them, and two surrogates that are no pair."""

letters = st.sampled_from(["a", "b", "/", ".", "\n", "\x01", "\x7f", "é", "\udcff", "\ue000", "😀"])
names = st.lists(st.one_of(st.text(letters, max_size=40), st.sampled_from(ODD)), max_size=40)


def sort(names: list[str]) -> tuple[list[int], list[bool]]:
    data = encoded("".join(f"{name}\0" for name in names)) + bytes(WORD)
    lengths = [len(encoded(name)) + 1 for name in names]
    places, same = ascending(data, np.cumsum([0, *lengths]))
    return places.tolist(), same.tolist()


def test_a_case_by_hand() -> None:
    assert sort(["b", "a", "ab", "", "a"]) == ([3, 1, 4, 2, 0], [False, False, True, False, False])


def test_names_that_differ_late_or_by_their_end() -> None:
    for length in range(1, 3 * WORD):
        same = "x" * length
        assert sort([same + "b", same + "a", same]) == ([2, 1, 0], [False] * 3)


def test_what_follows_a_name_is_not_compared() -> None:
    assert sort(["a", "zzz", "a", "b"])[0] == [0, 2, 3, 1]


def test_none() -> None:
    assert sort([]) == ([], [])


@given(names)
def test_it_is_that_of_strings(names: list[str]) -> None:
    places, same = sort(names)
    assert places == sorted(range(len(names)), key=names.__getitem__)
    ordered = [names[place] for place in places]
    assert same == [i > 0 and ordered[i] == ordered[i - 1] for i in range(len(names))]


def test_many() -> None:
    generator = np.random.default_rng(0)
    names = [f"folder/{number:09d}.jpg" for number in generator.permutation(100_000)]
    places, _ = sort(names)
    assert [names[place] for place in places] == sorted(names)
