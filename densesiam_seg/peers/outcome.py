"""What work comes to, as it is sent to another process: its result, or the user's error, which is raised there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from densesiam_seg.errors import DenseSiamError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Failed:
    """In place of a result."""

    error: DenseSiamError


def outcome_of(work: Callable[[], Result]) -> Result | Failed:
    """What `work` gives, or its error."""
    try:
        return work()
    except DenseSiamError as error:
        return Failed(error)


def result_of(outcome: Result | Failed) -> Result:
    """The result; raises the error of work that failed."""
    if isinstance(outcome, Failed):
        raise outcome.error
    return outcome
