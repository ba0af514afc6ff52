"""Columns of a table of very many rows: read-only sequences that take a few bytes for each item, not an object."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 12
"""How many items become Python objects at a time."""

Item = TypeVar("Item")


class Column(Sequence[Item]):
    """Behaves like a tuple, and equals one that holds the same."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Item | Self:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = range(len(self))[index]
        return self._items(place, place + 1)[0]

    def __iter__(self) -> Iterator[Item]:
        count = len(self)
        starts = range(0, count, BLOCK)
        return chain.from_iterable(self._items(i, min(i + BLOCK, count)) for i in starts)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, type(self)):
            return self._same(other)
        return isinstance(other, tuple) and tuple(self) == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}.of({tuple(self)})"

    @abstractmethod
    def take(self, places: NDArray[np.intp]) -> Self:
        """The items at some places, in their order."""

    @abstractmethod
    def _items(self, start: int, end: int) -> list[Item]: ...

    @abstractmethod
    def _same(self, other: Self) -> bool: ...


class Integers(Column[int]):
    """N whole numbers of 64 bits."""

    def __init__(self, values: NDArray[np.int64]) -> None:
        self._values = values

    @classmethod
    def of(cls, values: Iterable[int]) -> Integers:
        """Raises OverflowError for what 64 bits cannot hold."""
        if isinstance(values, Integers):
            return values
        return cls(np.fromiter(values, np.int64))

    def __len__(self) -> int:
        return len(self._values)

    def take(self, places: NDArray[np.intp]) -> Self:
        return type(self)(self._values[places])

    def _items(self, start: int, end: int) -> list[int]:
        items: list[int] = self._values[start:end].tolist()
        return items

    def _same(self, other: Self) -> bool:
        return np.array_equal(self._values, other._values)


class Names(Column[str]):
    """N texts as UTF-8, one after the other; text i lies from `bounds[i]` to `bounds[i + 1]`.

    Lone surrogates, which stand for the bytes of a file's name that are no text, are encoded like other characters.
    """

    def __init__(self, data: bytes | bytearray, bounds: NDArray[np.int64]) -> None:
        self._data = data
        self._bounds = bounds

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        if isinstance(names, Names):
            return names
        data, bounds = bytearray(), array("q", [0])
        for name in names:
            data += encoded(name)
            bounds.append(len(data))
        return cls(data, np.array(bounds, np.int64))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def take(self, places: NDArray[np.intp]) -> Self:
        return type(self)(*joined(self._data, self._bounds, places))

    def _items(self, start: int, end: int) -> list[str]:
        bounds = self._bounds[start : end + 1]
        data = bytes(self._data[bounds[0] : bounds[-1]])
        edges = pairwise((bounds - bounds[0]).tolist())
        return [data[first:last].decode("utf-8", "surrogatepass") for first, last in edges]

    def _same(self, other: Self) -> bool:
        return self._data == other._data and np.array_equal(self._bounds, other._bounds)


def encoded(name: str) -> bytes:
    """The bytes of a name as `Names` keeps them; they sort as the code points do."""
    return name.encode("utf-8", "surrogatepass")


def joined(
    data: bytes | bytearray,
    bounds: NDArray[np.int64],
    places: NDArray[np.integer],
    *,
    head: int = 0,
    tail: int = 0,
) -> tuple[bytearray, NDArray[np.int64]]:
    """The data and bounds of the texts at some places, each without its `head` first and `tail` last bytes."""
    source, texts = np.frombuffer(data, np.uint8), bytearray()
    fresh = np.zeros(len(places) + 1, np.int64)
    for first in range(0, len(places), BLOCK):
        part = places[first : first + BLOCK]
        starts = bounds[part] + head
        lengths = bounds[part + 1] - tail - starts
        ends = np.cumsum(lengths)
        shifts = np.repeat(starts - ends + lengths, lengths)
        texts += source[shifts + np.arange(len(shifts))].tobytes()
        fresh[first + 1 : first + 1 + len(part)] = ends + len(texts) - ends[-1]
    return texts, fresh
