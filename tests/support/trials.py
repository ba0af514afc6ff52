"""Cases of the fault suite: each is tried many times, and every failure is counted before the case fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

Function = TypeVar("Function", bound=Callable[..., None])


@dataclass
class Trials:
    """One case: its number in the list of faults, what is done to the program, what it must do, and how that went."""

    number: str
    fault: str
    expected: str
    full: bool = False
    """Whether the case is tried as often as it is meant to be, or only as often as `make test` has time for."""
    count: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    skipped: str = ""

    def several(self, quick: int, full: int) -> range:
        """The numbers of the trials: `quick` of them in `make test`, `full` in `make faults`."""
        return range(full if self.full else quick)

    @contextmanager
    def trial(self, name: object) -> Iterator[None]:
        """One trial; what is raised in the block is its failure, and the case goes on."""
        self.count += 1
        try:
            yield
        except pytest.skip.Exception:
            self.count -= 1
            raise
        except (Exception, pytest.fail.Exception):
            self.failures.append(f"{name}: {traceback.format_exc(limit=-3)}")

    def row(self) -> tuple[str, ...]:
        """Its row in the table."""
        failures = str(len(self.failures))
        if not self.count:
            failures = f"not run: {self.skipped}" if self.skipped else "not run"
        return (
            self.number,
            self.fault,
            self.expected,
            f"{self.count:,}",
            failures,
            f"{self.seconds:.1f}",
        )


def fault(number: str, fault: str, expected: str) -> Callable[[Function], Function]:
    """Declare a test as a case of the suite; it takes the fixture `trials`."""
    mark: Callable[[Function], Function] = pytest.mark.fault(number, fault, expected)
    return mark
