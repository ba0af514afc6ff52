"""Lists of files as people and programs write them: one path a line."""

from __future__ import annotations

import codecs
import os
import unicodedata
from collections.abc import Iterator

from densesiam_seg.errors import InputError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""What a text in Unicode may begin with."""
_LONGEST = 10_000
"""Characters of a line: two paths of the system's longest, and more than that is no list."""


def lines_of(label: str, data: bytes) -> list[str]:
    """The lines of a list, without their newlines: UTF-8, or UTF-16 or -32 with a byte order mark.

    Bytes that are no UTF-8 stay in the names as Python has them. Raises InputError.
    """
    text = _decoded(label, data)
    if "\0" in text:
        number = text[: text.index("\0")].count("\n") + 1
        raise InputError(
            f"{label}: line {number} holds a NUL byte, as in UTF-16 without its mark or in no text at all; "
            "save the list as UTF-8 text, one path per line"
        )
    # A carriage return alone ended the lines of old Macs.
    lines = (text if "\n" in text else text.replace("\r", "\n")).split("\n")
    if max(map(len, lines)) > _LONGEST:
        number, length = next((n, len(x)) for n, x in enumerate(lines, 1) if len(x) > _LONGEST)
        raise InputError(
            f"{label}: line {number} has {length:,} characters, more than any path; give one path a line"
        )
    return lines


def _decoded(label: str, data: bytes) -> str:
    known = (each for each in _MARKS if data.startswith(each[0]))
    mark, coding = next(known, (b"", "utf-8"))
    if coding == "utf-8":
        return os.fsdecode(data[len(mark) :])
    try:
        return data.decode(coding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{label}: begins like {coding.upper()} and is none ({error.reason}); save it as UTF-8 text"
        ) from error


def spellings(line: str) -> Iterator[str]:
    """What a line may name, the likeliest first: itself, and without what programs put around names.

    Those are Windows's line end, spaces, quotes, and backslashes between folders; last the other form of Unicode.
    """
    tried = {""}
    stripped = line.strip()
    unquoted = stripped
    if len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "\"'":
        unquoted = stripped[1:-1]
    slashed = unquoted.replace("\\", "/")
    forms = [unicodedata.normalize(form, slashed) for form in ("NFC", "NFD")]
    for text in (line, line.removesuffix("\r"), stripped, unquoted, slashed, *forms):
        if text not in tried:
            tried.add(text)
            yield text
