"""How things are measured: alternately in one process, medians of ratios, with their spread."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

Clock = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One line of the table; `limit` None says that the figure is told and not judged."""

    name: str
    value: float
    low: float
    high: float
    unit: str = "x"
    limit: float | None = None
    better: Literal["less", "more"] = "less"
    note: str = ""

    @property
    def verdict(self) -> str:
        """met, MISSED, or told."""
        if self.limit is None:
            return "told"
        met = self.value <= self.limit if self.better == "less" else self.value >= self.limit
        return "met" if met else "MISSED"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of one call."""
    began = clock()
    work()
    return clock() - began


def alternate(
    *works: Callable[[], object], repeats: int, clock: Clock = time.perf_counter
) -> list[list[float]]:
    """Seconds of each of the works, in turns, after one round that does not count."""
    for work in works:
        work()
    rounds = [[timed(work, clock) for work in works] for _ in range(repeats)]
    return [list(column) for column in zip(*rounds, strict=True)]


def ratio_row(
    name: str, above: list[float], below: list[float], limit: float | None, **more: Any
) -> Row:
    """The median of the rounds' own ratios, from the lowest to the highest."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return Row(name, statistics.median(ratios), min(ratios), max(ratios), limit=limit, **more)


def rate_row(
    name: str, count: float, seconds: list[float], unit: str, limit: float | None, **more: Any
) -> Row:
    """Things a second."""
    rates = [count / second for second in seconds]
    return Row(
        name,
        statistics.median(rates),
        min(rates),
        max(rates),
        unit=unit,
        limit=limit,
        better="more",
        **more,
    )


def peak_bytes() -> int:
    """The most memory this process has had; getrusage would count its parent's too."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("the system does not tell the peak of memory; leave the memory rows out")


def in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in a fresh process, whose peak of memory is its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        result = json.loads(receiver.recv())
    finally:
        process.join()
    return result


def _send(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(json.dumps(work(*arguments)))
