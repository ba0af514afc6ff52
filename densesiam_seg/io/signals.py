"""Stop requests: the first SIGINT or SIGTERM is noted for the loop to see, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from densesiam_seg.errors import StoppedError

Item = TypeVar("Item")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """The number of the signal that asked to stop, or 0; called by Python as the handler of these signals."""

    def __init__(self) -> None:
        self.number = 0

    def __bool__(self) -> bool:
        return self.number != 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note a first signal; leave at once on a second."""
        if self:
            # What is on the disk is whole at every moment, so leaving here loses only this step.
            os._exit(128 + number)
        self.number = number

    def require_none(self, text: str) -> None:
        """Raises StoppedError with that text when a signal has asked to stop."""
        if self:
            raise StoppedError(text, self.number)

    def until(self, items: Iterable[Item], text: str) -> Iterator[Item]:
        """The items, as long as none has asked to stop. Raises StoppedError with that text."""
        for item in items:
            self.require_none(text)
            yield item


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note stop signals while the block runs; outside the main thread, where Python allows no handler, none come.

    A request that came inside an inner block is the outer one's too: the inner one may have been past its last look.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
            if isinstance(handler, StopRequest):
                handler.number = handler.number or request.number
