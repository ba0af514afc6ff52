"""A long sequence of names that needs no Python object for each of them.

Axis: N names.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import overload

_AT_ONCE = 1 << 9
"""Names that are objects at one time while a sequence is built."""


class Names(Sequence[str]):
    """N names, read as from a tuple: in UTF-8, one behind the other, with the place where each begins.

    A name takes its own bytes and eight more, while a tuple of strings takes some sixty more. Names of files may hold
    surrogates, which stay.
    """

    __slots__ = ("_starts", "_text")

    def __init__(self, names: Iterable[str] = ()) -> None:
        text, starts = bytearray(), array("q", [0])
        left = iter(names)
        while part := [name.encode("utf-8", "surrogatepass") for name in islice(left, _AT_ONCE)]:
            ends = accumulate(map(len, part), initial=len(text))
            next(ends)  # is known already
            starts.extend(ends)
            text += b"".join(part)
        self._text, self._starts = text, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> Names: ...

    def __getitem__(self, place: int | slice) -> str | Names:
        if isinstance(place, slice):
            return Names(self[index] for index in range(*place.indices(len(self))))
        index = place + len(self) if place < 0 else place
        if not 0 <= index < len(self):
            raise IndexError("no name has this place")
        return self._text[self._starts[index] : self._starts[index + 1]].decode(
            "utf-8", "surrogatepass"
        )

    def __iter__(self) -> Iterator[str]:
        text, start = self._text, 0
        for end in islice(self._starts, 1, None):
            yield text[start:end].decode("utf-8", "surrogatepass")
            start = end

    def __eq__(self, other: object) -> bool:
        """The same names in the same order, in a tuple too."""
        if isinstance(other, Names):
            return self._text == other._text and self._starts == other._starts
        if isinstance(other, tuple):
            return len(self) == len(other) and all(
                one == two for one, two in zip(self, other, strict=True)
            )
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) + (", …" if len(self) > 3 else "")
        return f"Names({len(self)}: {shown})"
