"""The text of a list: its coding, its lines, and what a line may name."""

from __future__ import annotations

import codecs
import os

import pytest

from densesiam_seg.errors import InputError
from densesiam_seg.packed.lists import lines_of, spellings


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_codings(coding: str) -> None:
    assert lines_of("l.txt", "é.jpg\n木.jpg\n".encode(coding)) == ["é.jpg", "木.jpg", ""]


def test_bytes_that_are_no_text_stay_as_names_have_them() -> None:
    assert lines_of("l.txt", b"bad\xff.jpg") == [os.fsdecode(b"bad\xff.jpg")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a\nb\n".encode("utf-16-le"), "line 1 holds a NUL byte"),  # without its mark
        (b"a\nb\0c\0", "line 2 holds a NUL byte"),
        (codecs.BOM_UTF16_LE + b"a\0b", "begins like UTF-16"),
        (b"a\n" + b"b" * 10_001 + b"\nc", "line 2 has 10,001 characters"),
    ],
)
def test_other_files_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=f"l.txt: {words}"):
        lines_of("l.txt", data)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.jpg", ["a.jpg"]),
        ("a.jpg\r", ["a.jpg\r", "a.jpg"]),
        (" 'a\\b.jpg' \r", [" 'a\\b.jpg' \r", " 'a\\b.jpg' ", "'a\\b.jpg'", "a\\b.jpg", "a/b.jpg"]),
        ("'a.jpg\"", ["'a.jpg\""]),
        ("  ", ["  "]),
        ("", []),
        ('"', ['"']),
    ],
)
def test_spellings(line: str, expected: list[str]) -> None:
    assert list(spellings(line)) == expected
