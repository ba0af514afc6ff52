"""One process's part of a list: a pure function of the list's length, so that nobody has to hand out work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from densesiam_seg.errors import UsageError

RANK, WORLD_SIZE = "RANK", "WORLD_SIZE"
"""What torchrun and other launchers set for each process: its number, from 0, and how many there are."""


@dataclass(frozen=True)
class Shard:
    """Part `index`, from 0, of `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.index < self.count, self

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def alone(self) -> bool:
        """Whether it is the whole."""
        return self.count == 1

    def part(self, total: int) -> range:
        """The places that belong to it in a list of `total` items: neighbours, about as many as in every other."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)


def parse_shard(text: str) -> Shard:
    """`2/8` → the third of eight shards. Raises UsageError."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UsageError(f"--shard {text}: give I/N with I from 0 to N - 1, for example 0/4")
    return Shard(int(index), int(count))


def launched(environment: Mapping[str, str] = os.environ) -> Shard:
    """The place of this process among those that a launcher started; the whole where none did. Raises UsageError."""
    rank, size = environment.get(RANK), environment.get(WORLD_SIZE)
    if rank is None and size is None:
        return Shard()
    if not (rank and size and rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UsageError(
            f"{RANK}={rank}, {WORLD_SIZE}={size}: a launcher sets both, the rank from 0 to the size - 1; "
            "unset both for a single process"
        )
    return Shard(int(rank), int(size))


def own_shard(given: Shard | None = None) -> Shard | None:
    """The part that this process has to do: the one `given`, else its place under a launcher; None for all.

    Raises UsageError.
    """
    found = given or launched()
    return None if given is None and found.alone else found
